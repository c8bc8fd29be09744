"""Mediation: how much of an effect goes when a variable is erased at a layer."""

from __future__ import annotations

from torch import Tensor


def gone(before: Tensor, after: Tensor) -> float:
    """The fraction of an effect that is gone, 1 − ⟨after, before⟩/‖before‖².

    1: nothing of it is left; 0: it is as it was; over 1: it is reversed; under 0: it grew. So an effect that only changes its
    sign does not read as gone, and what is orthogonal to the old effect, over classes or levels, does not read as left.

    Args:
        before: the effect of each level on each output, `[m, c]`.
        after: the same with the variable erased, `[m, c]`.
    """
    return float(1 - (after * before).sum() / (before**2).sum())
