"""How well a linear probe reads a variable from a layer, cross-fitted, from moments alone.

A ridge probe is fitted on one half of the samples and scored on the other, and the other way round. Reading it in the moments
needs no row: R² = 1 − SSE/(n s), SSE = n[s − 2w'c + w'Sw + (ȳ − b − w'h̄)²]. scikit-learn's `Ridge(alpha=n·α)` gives the same.
Decodability says that a variable *can* be read, not that the model uses it (Hewitt & Liang 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.moments import Cross, Moments

RIDGE = 1e-2
ROUNDING = 1e-12


class Probe(NamedTuple):
    """Linear probes of all targets, fitted on one fold.

    Attributes:
        weight: `[d, t]`.
        bias: `[t]`.
    """

    weight: Tensor
    bias: Tensor

    def columns(self, which: slice) -> Probe:
        """The probes of some targets."""
        return Probe(self.weight[:, which], self.bias[which])

    def scores(self, h: Tensor) -> Tensor:
        """Predictions for activations `[n, d]`, `[n, t]`."""
        return h.double() @ self.weight + self.bias

    def between(self, middle: Tensor) -> Tensor:
        """Prediction of each column at an activation of its own, `[t, d]` to `[t]`."""
        return (middle * self.weight.T).sum(1) + self.bias


def stack(crosses: Sequence[Cross]) -> Cross:
    """Several targets' moments side by side."""
    return Cross(*(torch.cat(parts) for parts in zip(*crosses)))


def ridge_probe(m: Moments, target: Cross, ridge: float = RIDGE) -> Probe:
    """Ridge regression of every target column on the activation.

    Args:
        m: the fold's moments.
        target: its target columns.
        ridge: α in units of the mean eigenvalue tr(S)/d.

    Returns:
        A `Probe`.
    """
    s = m.gram / m.count[0]
    d = len(s)
    alpha = ridge * s.diagonal().sum() / d
    damped = s + torch.diag(alpha.clamp_min(1e-300).expand(d))
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info) or constant(m):  # no direction to read
        weight = torch.zeros(d, len(target.mean), dtype=s.dtype, device=s.device)
    else:
        weight = torch.cholesky_solve(target.covariance.T, factor)
    return Probe(weight, target.mean - m.hidden[0] @ weight)


def constant(m: Moments) -> bool:
    """Whether an activation is constant to rounding."""
    return bool(m.squares.sum() <= ROUNDING**2 * m.count[0] * (m.hidden[0] ** 2).sum())


def held_out_r2(probe: Probe, m: Moments, target: Cross, blocks: Sequence[slice]) -> Tensor:
    """R² of a probe on the other fold's moments.

    Args:
        probe: fitted elsewhere.
        m: the held-out fold's moments.
        target: its target columns.
        blocks: columns that make one variable; their squared errors are pooled.

    Returns:
        `[len(blocks)]`; NaN where the target does not vary in the fold.
    """
    w = probe.weight
    s = m.gram / m.count[0]
    offset = target.mean - probe.bias - m.hidden[0] @ w
    error = target.variance - 2 * (w * target.covariance.T).sum(0) + (w * (s @ w)).sum(0) + offset**2
    return block_r2(error, target.variance, blocks)


def held_out_products(probe: Probe, m: Moments, target: Cross, spread: Tensor) -> Tensor:
    """Mean products of the errors of a probe on the other fold's moments: the errors of any mixture of its columns follow.

    Args:
        probe: fitted elsewhere.
        m: the held-out fold's moments.
        target: its target columns.
        spread: second moments of these among each other, `[t, t]`.

    Returns:
        `[t, t]`.
    """
    w = probe.weight
    read = target.covariance @ w
    offset = target.mean - probe.bias - m.hidden[0] @ w
    return spread - read - read.T + w.T @ (m.gram @ w) / m.count[0] + offset.outer(offset)


def block_r2(missed: Tensor, total: Tensor, blocks: Sequence[slice]) -> Tensor:
    """1 − missed/total, summed over the columns of each variable.

    Args:
        missed: squared errors of each column, `[t]` or `[t, r]`.
        total: squared deviations from the mean, alike.
        blocks: columns that make one variable.

    Returns:
        `[len(blocks)]` or `[len(blocks), r]`; NaN where the total is not positive.
    """
    places = [(i, column) for i, b in enumerate(blocks) for column in range(b.start, b.stop)]
    block, columns = torch.tensor(places, dtype=torch.int64, device=missed.device).reshape(-1, 2).unbind(1)
    zero = missed.new_zeros(len(blocks), *missed.shape[1:])
    left, whole = (zero.index_add(0, block, part[columns]) for part in (missed, total))
    return torch.where(whole > 0, 1 - left / whole, torch.nan)


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve of every column, ties counted half (the Mann–Whitney statistic).

    Args:
        scores: `[n, t]`.
        positive: bool `[n, t]`.

    Returns:
        `[t]`; NaN where a class is missing.
    """
    ordered, order = scores.T.contiguous().sort(dim=1)
    place = torch.arange(len(scores), device=scores.device).expand_as(ordered)
    # Average rank under ties: half way between the first and the last place that the score could take.
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(fresh, place, 0).cummax(1).values
    last = torch.where(fresh.roll(-1, 1), place, len(scores)).flip(1).cummin(1).values.flip(1)
    hit = positive.T.gather(1, order)
    ones = positive.sum(0).double()
    zeros = len(scores) - ones
    rank = (hit * (first + last + 2)).sum(1).double() / 2
    return (rank - ones * (ones + 1) / 2) / (ones * zeros)


def balanced_accuracy(scores: Tensor, level: Tensor, midpoint: Tensor) -> Tensor:
    """Mean recall over levels of the rule that picks the column furthest above its midpoint.

    Args:
        scores: of one variable, `[n, t]`, one column per level (one column alone for a binary variable).
        level: true level index, int64 `[n]`.
        midpoint: per column, half way between the mean score of its level and that of the rest, `[t]`.

    Returns:
        A scalar; NaN where a level is missing.
    """
    above = scores - midpoint
    guess = (above[:, 0] > 0).long() if scores.shape[1] == 1 else above.argmax(1)
    levels = max(2, scores.shape[1])
    hit = torch.zeros(levels, dtype=torch.float64, device=scores.device)
    hit = hit.index_add_(0, level, (guess == level).double())
    return (hit / torch.bincount(level, minlength=levels)).mean()
