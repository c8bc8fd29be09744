"""Accuracy of every cell: the worst group and the gap, which an average hides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GroupAccuracy(NamedTuple):
    """Accuracy by group.

    Attributes:
        accuracy: `[k]`, 0…1; NaN where nothing was scored.
        worst: index of the worst group.
        gap: best minus worst, 0…1.
    """

    accuracy: Tensor
    worst: int
    gap: float


def group_accuracy(correct: Tensor, scored: Tensor, group: Tensor, groups: int) -> GroupAccuracy:
    """Accuracy of each group.

    Args:
        correct: number right in each row, `[r]`.
        scored: number with a known target in each row, `[r]`.
        group: each row's group, int64 `[r]`.
        groups: how many there are.

    Returns:
        `GroupAccuracy`; worst is −1 where nothing was scored.
    """
    right = torch.zeros(groups, dtype=torch.float64, device=correct.device).index_add_(0, group, correct.double())
    total = torch.zeros_like(right).index_add_(0, group, scored.double())
    accuracy = right / total
    known = accuracy[total > 0]
    if not len(known):
        return GroupAccuracy(accuracy, -1, float("nan"))
    worst = int(torch.where(total > 0, accuracy, torch.inf).argmin())
    return GroupAccuracy(accuracy, worst, float(known.max() - known.min()))
