"""Small nets of three named stages, so that every measure can be had at the same depths."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEPTHS = ("early", "middle", "last")
LAYERS = [f"encoder.{depth}" for depth in DEPTHS]


class Staged(L.LightningModule):
    """A binary classifier, `encoder.early`, `encoder.middle`, `encoder.last` and `head`, that trains itself with AdamW."""

    def __init__(self, early: nn.Module, middle: nn.Module, last: nn.Module, width: int, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        for depth, stage in zip(DEPTHS, (early, middle, last)):
            self.encoder.add_module(depth, stage)
        self.head = nn.Linear(width, 2)
        self.weight_decay = weight_decay

    def forward(self, image: Tensor) -> Tensor:
        """Logits `[n, 2]`."""
        return self.head(self.encoder(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self(batch["image"]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, which without weight decay is Adam."""
        return torch.optim.AdamW(self.parameters(), 1e-3, weight_decay=self.weight_decay)


def mlp(channels: int, side: int, weight_decay: float = 0.0, width: int = 128) -> Staged:
    """Three hidden layers."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, width), nn.ReLU())
    rest = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2)]
    return Staged(first, *rest, width, weight_decay)


def cnn(channels: int, side: int, weight_decay: float = 0.0) -> Staged:
    """Convolutions, normalised by groups, halving the side each; four of them for 32 pixels, two and a layer for 14."""

    def block(c: int, d: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c, d, 3, padding=1), nn.GroupNorm(4, d), nn.ReLU(), nn.MaxPool2d(2))

    if side == 32:
        early, middle = nn.Sequential(block(channels, 8), block(8, 16)), block(16, 32)
        return Staged(early, middle, nn.Sequential(block(32, 32), nn.Flatten()), 32 * 2 * 2, weight_decay)
    last = nn.Sequential(nn.Flatten(), nn.Linear(16 * 3 * 3, 64), nn.ReLU())
    return Staged(block(channels, 8), block(8, 16), last, 64, weight_decay)


def strided(channels: int, side: int, weight_decay: float = 0.0) -> Staged:
    """Large kernels in large steps, smooth, normalised by batches."""

    def block(c: int, d: int, kernel: int, step: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c, d, kernel, step, kernel // 2), nn.BatchNorm2d(d), nn.GELU())

    early, middle = block(channels, 16, 7, 4), block(16, 32, 5, 2)
    last = nn.Sequential(nn.Flatten(), nn.Linear(32 * (side // 8) ** 2, 64), nn.GELU())
    return Staged(early, middle, last, 64, weight_decay)


ARCHITECTURES = {"mlp": mlp, "cnn": cnn, "strided": strided}
