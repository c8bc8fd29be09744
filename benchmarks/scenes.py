"""Networks of ordinary size on noise, each watched at four layers for ten variables: what `cost.py` takes the time of.

The labels are noise too: what an event costs does not depend on what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_interp import Concept, Confounder
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel
from lightning_interp.variables import Variable


class Scene(NamedTuple):
    """A network, its data, and what is watched.

    Attributes:
        model: makes the network.
        train: the training loader.
        val: the validation loader, or a loader of the monitor's own.
        variables: what is watched.
        layers: where.
        output: the module whose output is explained.
        inputs: key of the network's input in a batch.
        target: key of the task's label.
    """

    model: Callable[[], LightningModule]
    train: DataLoader
    val: DataLoader
    variables: list[Variable]
    layers: Sequence[str]
    output: str
    inputs: str
    target: str


class Noise(Dataset):
    """Inputs and labels, drawn once.

    Args:
        samples: how many.
        shape: of one input.
        vocabulary: number of tokens; None: real numbers.
    """

    def __init__(self, samples: int, shape: tuple[int, ...], vocabulary: int | None = None) -> None:
        self.x = torch.randn(samples, *shape) if vocabulary is None else torch.randint(vocabulary, (samples, *shape))
        self.columns = {f"v{j}": torch.randint(2, (samples,)) for j in range(7)}
        self.columns["v7"] = torch.randint(3, (samples,))
        self.columns |= {f"v{j}": torch.randn(samples) for j in (8, 9)}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], **{name: column[i] for name, column in self.columns.items()}}


def ten_variables() -> list[Variable]:
    """Seven binary ones, one of three levels, two continuous ones."""
    kinds = ["binary"] * 7 + ["categorical"] + ["continuous"] * 2
    return [Concept("v0"), *(Confounder(f"v{j}", kind=kinds[j]) for j in range(1, 10))]


class Classifier(LightningModule):
    """Two classes, cross-entropy, Adam.

    Args:
        body: the network below the head.
        width: its output's.
    """

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 2]`."""
        return self.head(self.body(x))

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch["x"]), batch["v0"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The task's loss."""
        return self._loss(batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


class Residual(nn.Module):
    """The basic block of He et al. (2016)."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        same = stride == 1 and a == b
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, a, h, w]` to `[n, b, h', w']`."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> Classifier:
    """ResNet-18 (11.2 million weights)."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    body = nn.Sequential()
    body.add_module("stem", stem)
    for i, (a, b, stride) in enumerate(((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)), start=1):
        body.add_module(f"stage{i}", nn.Sequential(Residual(a, b, stride), Residual(b, b, 1)))
    body.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return Classifier(body, 512)


class Encoder(nn.Module):
    """A transformer over tokens (pre-norm, 4 heads), its mean over tokens."""

    def __init__(self, layers: int, width: int, tokens: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True) for _ in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Token ids `[n, t]` to `[n, width]`."""
        return self.blocks(self.embedding(x) + self.place).mean(1)


def mlp() -> Classifier:
    """Four hidden layers of 512."""
    widths = [784, 512, 512, 512, 512]
    body = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)))
    return Classifier(body, 512)


def _scene(model: Callable[[], LightningModule], layers: Sequence[str], batch: int, train: Noise, val: Noise) -> Scene:
    loaders = DataLoader(train, batch, shuffle=True), DataLoader(val, batch)
    return Scene(model, *loaders, ten_variables(), layers, "head", "x", "v0")


def resnet_scene() -> Scene:
    """ResNet-18 on 64 × 64 pixels."""
    layers = [f"body.stage{i}" for i in range(1, 5)]
    return _scene(resnet18, layers, 64, Noise(512, (3, 64, 64)), Noise(512, (3, 64, 64)))


def transformer_scene() -> Scene:
    """Six layers of width 256 on 64 tokens."""
    layers = [f"body.blocks.{i}" for i in (0, 2, 4, 5)]
    sizes = (64,), 1000
    return _scene(lambda: Classifier(Encoder(6, 256, 64, 1000), 256), layers, 64, Noise(256, *sizes), Noise(256, *sizes))


def mlp_scene() -> Scene:
    """784 inputs, four layers of 512."""
    layers = [f"body.{i}" for i in range(4)]
    return _scene(mlp, layers, 128, Noise(16384, (784,)), Noise(4096, (784,)))


def demo_scene() -> Scene:
    """Digits on grass, two variables: the shortest epoch in which anybody would use a monitor."""
    data = GrassyDigitsData()
    variables = [Concept("digit"), Confounder("grass")]
    loaders = data.train_dataloader(), data.val_dataloader()
    return Scene(GrassyDigitsModel, *loaders, variables, ["encoder.conv*"], "head", "image", "label")


SCENES = {"demo": demo_scene, "resnet": resnet_scene, "transformer": transformer_scene, "mlp": mlp_scene}
