"""The net and its step, with nothing but torch, so that a process without `lightning` has them too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

EPOCHS, LR, WEIGHT = 2, 0.01, 3.0
PLACES = {"output": "head", "target": "moo", "inputs": "x"}


class Net(nn.Module):
    """Encoder and head.

    Args:
        dropout: probability; with any, what a watcher draws at random would show in the weights.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


class Steps:
    """What makes a LightningModule of it, of either name."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return task(self(batch["x"]), batch)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self(batch["x"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), LR)


def task(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return F.cross_entropy(logits, batch["moo"])


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
