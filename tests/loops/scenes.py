"""What each training loop is asked: the same data, the same variables, and every bit of a run."""

from __future__ import annotations

import torch
from callbacks.boring import ALL, Animals, bits, loader, streams, swap_grass
from torch import nn

from lightning_interp import Concept, Confounder
from loops.net import PLACES

MOO, GRASS = Concept("moo"), Confounder("grass", intervention=swap_grass)
WATCH = {"layers": ["encoder.*"], "measures": ALL, "warn_above": float("inf"), **PLACES}


def train_data(shuffle: bool = False):
    return loader(Animals(192, 1, augment=shuffle), shuffle, batch=32)


def val_data():
    return loader(Animals(160, 2), batch=32)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """A run's every bit."""
    return {"weights": bits(model.state_dict()), "optimizer": bits(optimizer.state_dict()), "streams": streams()}
