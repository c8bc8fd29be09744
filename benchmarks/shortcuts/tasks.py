"""What a task is, and three data sets with a shortcut that was built in, with the nets that are trained on them.

`demo`: digits on photographs, 1,100 for training. Grass agrees with the label 95 or 99 % of the time; do(grass) is the same
digit on the other photograph.

`coloured`: MNIST, 14 × 14, two channels; the label is "digit < 5", with a quarter of the labels flipped. Colour agrees with it
80 and 90 % of the time in two training environments, 10 % in test (Arjovsky et al. 2019); do(colour) swaps the channels.

`decoy`: MNIST with a 4 × 4 patch in a random corner, its grey 255 − 25·digit in training and drawn at random in test (Ross et
al. 2017; Rieger et al. 2020); do(grey) is another grey in the same corner. In training grey is a function of the label: no
method that has labels only can tell one from the other.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

import lightning_interp as interp
from lightning_interp.demo import GrassyDigits, GrassyDigitsModel, swap_background
from shortcuts.nets import Classifier, Grey

Fields = dict[str, Tensor]
PARTS = ("train", "val", "test")
NOISE = 0.25  # of coloured MNIST's labels that are flipped
FLIPS, TEST_FLIPS = (0.2, 0.1), 0.9  # of colours that differ from the label, in the two training environments and in test
DECAY = 3.0  # weight decay on coloured MNIST, or its noise is memorised: the best for the ceiling on the validation part
GREYS = tuple(255 - 25 * k for k in range(10))  # of the decoy


class Task(ABC):
    """A data set with a shortcut.

    Attributes:
        name: of the task.
        setting: what it can be varied in: agreement in training, or training images (of each environment).
        epochs: of training.
        confounder: the shortcut, with its intervention.
        given: what should matter and goes with it.
        levels: values of the confounder.
        layer: module that feeds the head.
        cluster: where the id of a shared source sits.
        separable: whether labels can tell the confounder from what is given.
        inputs: where what the net is given sits.
        bent: layer with a non-linearity above it, where RR-ClArC holds the gradient.
        also: further parts that accuracy is measured on.
        number: the confounder as a continuous one, where it has cells that are nearly empty.
    """

    name: str
    setting: float
    epochs: int
    confounder: interp.Confounder
    given: tuple[interp.Concept, ...]
    levels: Sequence[float]
    layer = "encoder"
    cluster: str | None = None
    separable = True
    inputs = "image"
    bent = "encoder.3"
    also: tuple[str, ...] = ()
    number: interp.Confounder | None = None

    @property
    def places(self) -> dict[str, str]:
        """Where things are, for the library."""
        return {"output": "head", "target": "label", "inputs": self.inputs}

    def variables(self, part: str) -> list[interp.variables.Variable]:
        """What can be measured on a part."""
        return [*self.given, self.confounder]

    @abstractmethod
    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """A part of the data, `{key: [n, ...]}`; for the ceiling, training has no shortcut."""

    @abstractmethod
    def do(self, fields: Fields, level: float) -> Tensor:
        """What the net is given, with the confounder set to a level for all."""

    @abstractmethod
    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> L.LightningModule:
        """A fresh net with the modules `encoder` and `head`; the task's own weight decay where none is given."""


class Demo(Task):
    """Digits on grass, see `lightning_interp.demo`; validation and test hold both photographs equally."""

    name, layer, cluster, bent = "demo", "encoder.flatten", "source", "encoder.conv4"
    confounder = interp.Confounder("grass", kind="binary", intervention=swap_background)
    given = (interp.Concept("digit", kind="binary"),)
    levels = (0, 1)

    def __init__(self, agreement: float = 0.95, epochs: int = 15) -> None:
        self.setting, self.epochs = agreement, epochs

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """1,100 images for training, 1,392 and 1,396 held out."""
        if part == "train":
            return GrassyDigits("train", 0.5 if ceiling else self.setting, crops=1, seed=seed).fields
        return GrassyDigits(part, 0.5, crops=4, seed=seed).fields

    def do(self, fields: Fields, level: float) -> Tensor:
        """On brick, or on grass."""
        return torch.where((fields["grass"] == level)[:, None, None, None], fields["image"], fields["swapped"])

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> L.LightningModule:
        """The demo's own."""
        return GrassyDigitsModel(weight_decay=weight_decay or 0.0)


class Coloured(Task):
    """Coloured MNIST. Validation is made of held-out images of the two *training* environments, half of each."""

    name = "coloured"
    given = (interp.Concept("label", kind="binary"),)
    levels = (0, 1)

    def __init__(self, per_environment: int = 5_000, epochs: int = 10, held_out: int = 10_000) -> None:
        self.setting, self.epochs, self.held_out = per_environment, epochs, held_out
        self.confounder = interp.Confounder("colour", kind="binary", intervention=swap_channels)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """Images `[n, 2, 14, 14]`; `environment` counts from 0."""
        rng = np.random.default_rng([seed, PARTS.index(part)])
        images, digit = mnist()[part]
        environments = 1 if part == "test" else len(FLIPS)
        chosen = rng.permutation(len(images))[: int(self.setting) * environments if part == "train" else self.held_out]
        environment = np.arange(len(chosen)) % environments
        label = (digit[chosen] < 5) ^ (rng.random(len(chosen)) < NOISE)
        colour = label ^ (rng.random(len(chosen)) < (TEST_FLIPS if part == "test" else np.array(FLIPS)[environment]))
        small = images[chosen][:, ::2, ::2] / 255
        channels = np.stack([small * ~colour[:, None, None], small * colour[:, None, None]], 1)
        return {
            "image": torch.from_numpy(channels).float(),
            "label": torch.from_numpy(label).long(),
            "colour": torch.from_numpy(colour).long(),
            "environment": torch.from_numpy(environment),
        }

    def do(self, fields: Fields, level: float) -> Tensor:
        """All in one colour."""
        return torch.where((fields["colour"] == level)[:, None, None, None], fields["image"], fields["image"].flip(1))

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> L.LightningModule:
        """An MLP as theirs; that of the ceiling adds the channels up and sees no colour."""
        first = Grey() if ceiling else nn.Identity()
        return Classifier(first, 14 * 14 * (1 if ceiling else 2), 2, DECAY if weight_decay is None else weight_decay)


class Decoy(Task):
    """Decoy-MNIST. The validation part's patches are redrawn, as the intervention does it, and as in test."""

    name, separable = "decoy", False
    levels = GREYS
    given = (interp.Concept("label", kind="categorical"),)

    def __init__(self, images: int = 10_000, epochs: int = 10, held_out: int = 10_000) -> None:
        self.setting, self.epochs, self.held_out = images, epochs, held_out
        self.confounder = interp.Confounder("grey", kind="categorical", intervention=redraw_patch)

    def fields(self, part: str, seed: int, ceiling: bool = False) -> Fields:
        """Images `[n, 28, 28]`, the same before the patch (`bare`), its corner and its grey."""
        rng = np.random.default_rng([seed, PARTS.index(part)])
        images, digit = mnist()[part]
        chosen = rng.permutation(len(images))[: int(self.setting) if part == "train" else self.held_out]
        label = digit[chosen].astype(np.int64)
        k = label if part == "train" and not ceiling else rng.integers(10, size=len(label))
        bare = torch.from_numpy(images[chosen]).float() / 255
        corner, grey = torch.from_numpy(rng.integers(4, size=len(label))), torch.tensor(GREYS)[k]
        fields = {"bare": bare, "corner": corner, "grey": grey, "label": torch.from_numpy(label)}
        return {**fields, "image": with_patch(bare, corner, grey)}

    def do(self, fields: Fields, level: float) -> Tensor:
        """All patches in one grey."""
        return with_patch(fields["bare"], fields["corner"], torch.full_like(fields["grey"], int(level)))

    def net(self, weight_decay: float | None = None, ceiling: bool = False) -> L.LightningModule:
        """An MLP."""
        return Classifier(nn.Identity(), 28 * 28, 10, weight_decay or 0.0)


def swap_channels(batch: Fields) -> Fields:
    """do(colour): its own inverse."""
    return {**batch, "image": batch["image"].flip(1), "colour": 1 - batch["colour"]}


def redraw_patch(batch: Fields) -> Fields:
    """do(grey): one of the ten at random, in the same corner."""
    grey = torch.tensor(GREYS)[torch.randint(len(GREYS), batch["grey"].shape)]
    return {**batch, "image": with_patch(batch["bare"], batch["corner"], grey), "grey": grey}


def with_patch(bare: Tensor, corner: Tensor, grey: Tensor) -> Tensor:
    """Images `[n, 28, 28]` with a 4 × 4 patch: corner 0 to 3, grey 0 to 255."""
    image = bare.clone()
    for c in range(4):
        rows, columns = slice(0, 4) if c < 2 else slice(-4, None), slice(0, 4) if c % 2 == 0 else slice(-4, None)
        here = corner == c
        image[here, rows, columns] = (grey[here] / 255).to(image)[:, None, None]
    return image


class Rows(Dataset[Fields]):
    """Fields, read a batch at a time."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(self.fields["label"])

    def __getitem__(self, index: list[int]) -> Fields:
        return {key: values[index] for key, values in self.fields.items()}


def loader(fields: Fields, batch_size: int, shuffle: bool = False) -> DataLoader[Fields]:
    """Batches of fields; nothing is collated."""
    rows = Rows(fields)
    order = RandomSampler(rows) if shuffle else SequentialSampler(rows)
    return DataLoader(rows, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=False))


def data_file(name: str) -> Path | None:
    """Where a data set is, or None."""
    folder = os.environ.get("LIGHTNING_INTERP_DATA")
    path = Path(folder or "") / name
    return path if folder and path.exists() else None


def mnist_file() -> Path | None:
    """Where MNIST is, or None."""
    return data_file("mnist.npz")


@cache
def mnist() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and digits by part; the last 10,000 for training are the validation part."""
    with np.load(str(mnist_file())) as file:
        x, y = file["x_train"], file["y_train"]
        return {"train": (x[:50_000], y[:50_000]), "val": (x[50_000:], y[50_000:]), "test": (file["x_test"], file["y_test"])}
