"""The nets that are trained on the tasks, all with an `encoder` and a linear `head`."""

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 256  # units of each of the two hidden layers


class Net(L.LightningModule):
    """A net that trains itself with AdamW on mean cross-entropy."""

    encoder: nn.Module
    head: nn.Module

    def __init__(self, inputs: str, weight_decay: float, rate: float = 1e-3) -> None:
        super().__init__()
        self.inputs, self.weight_decay, self.rate = inputs, weight_decay, rate

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, classes]`."""
        return self.head(self.encoder(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(batch[self.inputs]), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Run, for whoever watches."""
        self(batch[self.inputs])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, which without weight decay is Adam; the learning rate falls to zero, or the last steps' noise is measured."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Classifier(Net):
    """A multi-layer perceptron with two hidden layers, after a first module of its own."""

    def __init__(
        self,
        first: nn.Module,
        features: int,
        classes: int,
        weight_decay: float = 0.0,
        hidden: int = HIDDEN,
        inputs: str = "image",
    ) -> None:
        super().__init__(inputs, weight_decay)
        layers = (nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.encoder = nn.Sequential(first, nn.Flatten(), *layers)
        self.head = nn.Linear(hidden, classes)


class ColourCNN(Net):
    """`SmallCNN` of the demo for colour pictures `[n, 3, 32, 32]`, 0 to 1: `encoder.conv1` to `conv4`, `encoder.flatten`."""

    def __init__(self, weight_decay: float = 0.0, width: int = 16) -> None:
        super().__init__("image", weight_decay)
        channels = ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width))
        self.encoder = nn.Sequential()
        for i, (c, d) in enumerate(channels, start=1):
            block = nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(4, d), nn.ReLU(), nn.MaxPool2d(2))
            self.encoder.add_module(f"conv{i}", block)
        self.encoder.add_module("flatten", nn.Flatten())
        self.head = nn.Linear(16 * width, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[n, 2]`."""
        return self.head(self.encoder(2 * image - 1))


class BagOfWords(Net):
    """The mean of the words' vectors, two hidden layers, a head; word 0 is no word."""

    def __init__(self, words: int, weight_decay: float = 0.0, width: int = 64) -> None:
        super().__init__("words", weight_decay, rate=1e-2)
        layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.encoder = nn.Sequential(MeanOfWords(words, width), nn.Identity(), *layers)
        self.head = nn.Linear(width, 2)


class MeanOfWords(nn.Module):
    """`[n, width]` from words `[n, t]`."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(words, width, mode="mean", padding_idx=0)

    def forward(self, words: Tensor) -> Tensor:
        """Mean over words."""
        return self.vectors(words)


class Without(nn.Module):
    """Sets columns to zero."""

    def __init__(self, columns: Sequence[int]) -> None:
        super().__init__()
        self.columns = list(columns)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, d]`."""
        x = x.clone()
        x[:, self.columns] = 0
        return x


class Grey(nn.Module):
    """Adds the channels up."""

    def forward(self, image: Tensor) -> Tensor:
        """`[n, 14, 14]` from `[n, 2, 14, 14]`."""
        return image.sum(1)
