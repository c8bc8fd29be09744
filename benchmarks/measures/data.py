"""Probe sets in which the truth is known: every image also with the variable exchanged.

Fields of a set, `{key: [n, ...]}`: `image`; `label`; `confounder`, 0 or 1; `swapped`, the same image with the confounder
exchanged; `source`, which handwritten digit it is. `hidden`, if there is a third factor that nobody names, with `unhidden`, the
same image with that exchanged.
"""

import numpy as np
import torch
from shortcuts.tasks import NOISE, mnist
from torch import Tensor

from lightning_interp.demo import GrassyDigits, composite, originals
from lightning_interp.demo.digits import ROWS, SIZE

Fields = dict[str, Tensor]
HIDDEN_AGREES = 0.8  # in a probe set, with the confounder: a correlation of .6
CROPS = 8  # of a digit of the demo's probe sets


def digits_on_grass(part: str, agreement: float, seed: int) -> Fields:
    """The demo's 1,100 digits for training; half of its test digits to measure on ("probe"); the rest, and its validation
    digits on the photographs' test rows, for the truth ("truth"): the truth should have the smaller error of the two.
    """
    if part == "train":
        fields = GrassyDigits("train", agreement, crops=1, seed=seed).fields
        return {key: fields[name] for key, name in zip(KEYS, ("image", "swapped", "label", "grass", "source"))}
    fields = GrassyDigits("test", agreement, crops=CROPS, seed=seed).fields
    half = np.random.default_rng(seed).permutation(fields["source"].unique())[part == "truth" :: 2]
    chosen = torch.isin(fields["source"], torch.from_numpy(half))
    fields = {key: fields[name][chosen] for key, name in zip(KEYS, ("image", "swapped", "label", "grass", "source"))}
    if part == "probe":
        return fields
    more = on_test_rows(GrassyDigits("val", agreement, crops=CROPS, seed=seed).fields, seed)
    return {key: torch.cat([fields[key], more[key]]) for key in KEYS}


def on_test_rows(fields: Fields, seed: int) -> Fields:
    """The same digits on crops of the rows of the photographs that the test part has."""
    ink, _, photographs = originals()
    rng, (top, bottom) = np.random.default_rng([seed, 1]), ROWS["test"]
    n = len(fields["label"])
    corners = rng.integers((top, 0), (bottom - SIZE + 1, 512 - SIZE + 1), size=(n, 2))
    windows = photographs.unfold(1, SIZE, 1).unfold(2, SIZE, 1)
    brick, grass = composite(ink[fields["source"]], windows[:, corners[:, 0], corners[:, 1]]).unsqueeze(2)
    on_grass = fields["grass"] == 1
    images = {"image": pick(on_grass, grass, brick), "swapped": pick(on_grass, brick, grass)}
    return images | {"label": fields["label"], "confounder": fields["grass"], "source": fields["source"]}


KEYS = ("image", "swapped", "label", "confounder", "source")
# In a shuffle: the first and the last 5,000 of MNIST's test part are of different people.
PLACES = {"train": slice(6_000), "probe": slice(2_000), "truth": slice(2_000, 10_000)}


def coloured_digits(part: str, agreement: float, seed: int, hidden: float | None = None, tied: bool = False) -> Fields:
    """Coloured MNIST: the label is "digit < 5", a quarter of the labels flipped; the confounder is the channel that is used.

    Args:
        part: "train", "probe" (2,000 test images), or "truth" (the other 8,000).
        agreement: of colour and label.
        seed: of everything that is drawn; "probe" and "truth" of one seed share no image.
        hidden: how often a white corner patch agrees with the label; None: no patch.
        tied: whether the patch agrees with the colour instead, in `HIDDEN_AGREES` of the images.
    """
    images, digit = mnist()["train" if part == "train" else "test"]
    chosen = np.random.default_rng(seed).permutation(len(images))[PLACES[part]]
    rng = np.random.default_rng([seed, list(PLACES).index(part)])
    label = (digit[chosen] < 5) ^ (rng.random(len(chosen)) < NOISE)
    colour = label ^ (rng.random(len(chosen)) >= agreement)
    small = images[chosen][:, ::2, ::2] / 255
    image = np.stack([small * ~colour[:, None, None], small * colour[:, None, None]], 1)
    fields = {"label": label, "confounder": colour, "source": chosen}
    if hidden is not None:
        agrees = rng.random(len(chosen)) < (HIDDEN_AGREES if tied else hidden)
        fields["hidden"] = patch = (colour if tied else label) ^ ~agrees
        bare, image = image, with_corner(image, patch)
        fields["unhidden"] = with_corner(bare, ~patch)
    fields |= {"image": image, "swapped": image[:, ::-1].copy()}
    return {k: torch.from_numpy(v).float() if v.ndim > 1 else torch.from_numpy(v).long() for k, v in fields.items()}


def with_corner(images: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Images `[n, 2, 14, 14]` with a 2 × 2 patch in both channels, so that exchanging them leaves it as it is."""
    out = images.copy()
    out[:, :, :2, :2] = patch[:, None, None, None]
    return out


def at_level(fields: Fields, level: int) -> Tensor:
    """All images with the confounder at 0 or 1: do(confounder)."""
    return pick(fields["confounder"] == level, fields["image"], fields["swapped"])


def hidden_at_level(fields: Fields, level: int) -> Tensor:
    """All images with the hidden factor at 0 or 1."""
    return pick(fields["hidden"] == level, fields["image"], fields["unhidden"])


def pick(which: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of one where `which`, else of the other."""
    return torch.where(which[:, None, None, None], one, other)
