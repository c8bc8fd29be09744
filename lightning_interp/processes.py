"""Sums and gathers over the processes of a run; with one process they change nothing."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(item: T) -> list[T]:
    """Every process's item, in the order of ranks: a collective, so all must call it."""
    _, size = world()
    if size == 1:
        return [item]
    items: list[T | None] = [None] * size
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def stacked(rows: Tensor) -> Tensor:
    """Every process's rows `[n, ...]` one under the other, on the CPU."""
    parts = [part for part in gathered(rows.cpu()) if part.numel()]
    return torch.cat(parts) if parts else rows.cpu()
