"""`caltech`: airplanes and motorbikes of Caltech-101, and the white frame that gives motorbikes away.

Nobody built it in: pictures of motorbikes were padded with white when they were collected. "frame" is a white margin of over
15 % of the area: 690 of 798 motorbikes, 132 of 800 airplanes. The parts are those of the file, all with the same shortcut; the
validation part holds 20 airplanes with a frame and 16 motorbikes without. do(frame) takes the frame off (the picture is cropped
to what is inside, and so grows) or puts one on (it shrinks). For the size of the effect both arms have the same size: around
the same picture white, or its own mirror image.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import lightning_interp as interp
from shortcuts.nets import ColourCNN
from shortcuts.tasks import PARTS, Fields, Task, data_file

FILE = "caltech_frames.npz"
FRAMED = 0.15  # of the area
SIZE, SMALL = 64, 32  # pixels of a side, as it is and as the net sees it


class Caltech(Task):
    """Airplane or motorbike."""

    name, layer, bent = "caltech", "encoder.flatten", "encoder.conv4"
    setting = 941  # images for training
    given = (interp.Concept("label", kind="binary"),)
    levels = (0, 1)
    also = ("exchanged",)

    def __init__(self, epochs: int = 15) -> None:
        self.epochs = epochs
        self.confounder = interp.Confounder("frame", kind="binary", intervention=exchange_frame)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """Images `[n, 3, 32, 32]` as they are; `other` with the frame off or on; `white` and `mirrored` of one size.

        The seed draws nothing: the parts are fixed. For the ceiling half of each class has a frame.
        """
        if part == "exchanged":
            return exchange_frame(self.fields("test", seed))
        every = pictures()
        fields = {key: values[every["part"] == PARTS.index(part)] for key, values in every.items()}
        if ceiling:
            exchanged = exchange_frame(fields)
            turn = torch.zeros_like(fields["frame"], dtype=torch.bool)
            for label in (0, 1):
                mine = fields["label"] == label
                usual = fields["frame"][mine].float().mean().round()
                rows = torch.nonzero(mine & (fields["frame"] == usual)).squeeze(1)
                turn[rows[: len(rows) - int(mine.sum()) // 2]] = True
            fields = {key: torch.where(turn.view(-1, *[1] * (v.ndim - 1)), exchanged[key], v) for key, v in fields.items()}
        return fields

    def do(self, fields: Fields, level: float) -> Tensor:
        """White around all, or around none."""
        return fields["white" if level else "mirrored"]

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> ColourCNN:
        """A small CNN."""
        return ColourCNN(weight_decay or 0.0)


def exchange_frame(batch: Fields) -> Fields:
    """do(frame): its own inverse."""
    return {**batch, "image": batch["other"], "other": batch["image"], "frame": 1 - batch["frame"]}


@cache
def pictures() -> Fields:
    """All of them, in every form."""
    with np.load(str(data_file(FILE))) as file:
        images, margins, label, part = (file[key] for key in ("x", "white_margin", "y", "split"))
    area = 1 - (1 - margins[:, 0] - margins[:, 1]) * (1 - margins[:, 2] - margins[:, 3])
    frame = area > FRAMED
    # The frame that is put on has the margins of one that was there, drawn from the training part.
    drawn = np.random.default_rng(0).choice(np.flatnonzero(frame & (part == 0)), len(frame))
    forms: dict[str, list[Tensor]] = {"image": [], "other": [], "white": [], "mirrored": []}
    for i, x in enumerate(images):
        picture = torch.from_numpy(x).permute(2, 0, 1).float() / 255
        bare = cropped(picture, margins[i])
        sides = margins[i] if frame[i] else margins[drawn[i]]
        white = padded(bare, sides, "constant")
        each = {"image": picture, "other": resized(bare, SIZE, SIZE) if frame[i] else white}
        each |= {"white": white, "mirrored": padded(bare, sides, "reflect")}
        for name, made in each.items():
            forms[name].append(F.avg_pool2d(made, SIZE // SMALL))
    labels = {"label": torch.from_numpy(label).long(), "frame": torch.from_numpy(frame).long(), "part": torch.from_numpy(part)}
    return {**{name: torch.stack(found) for name, found in forms.items()}, **labels}


def cropped(picture: Tensor, margin: np.ndarray) -> Tensor:
    """What is inside of the margins (top, bottom, left, right, as fractions)."""
    top, bottom, left, right = (round(float(m) * SIZE) for m in margin)
    return picture[:, top : SIZE - bottom, left : SIZE - right]


def padded(bare: Tensor, margin: np.ndarray, mode: str) -> Tensor:
    """A picture made smaller, and around it white, or its mirror image."""
    top, bottom, left, right = (round(float(m) * SIZE) for m in margin)
    inside = resized(bare, SIZE - top - bottom, SIZE - left - right).numpy()
    how = {"constant_values": 1.0} if mode == "constant" else {}
    return torch.from_numpy(np.pad(inside, ((0, 0), (top, bottom), (left, right)), mode=mode, **how))


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, without aliases."""
    made = F.interpolate(picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False)
    return made[0].clamp(0, 1)
