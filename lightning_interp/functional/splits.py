"""Readable splits: two-way splits of the samples that a layer tells apart by itself, linearly, with no labels.

A split is readable if the probe that is fitted to it gives the same split back: the fixed point of "read every sample, cut
the readings in two where they fall apart, fit a ridge probe to the two sides". It is clustering by how well a linear
classifier could tell the clusters (discriminative clustering: Bach & Harchaoui 2007, "DIFFRAC"; Ding & Li 2007, "LDA-Km"),
one direction at a time. Any number of starts run side by side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

GAUSSIAN_CLARITY = 2 / math.pi  # what a cut through a normal distribution explains of it: no split at all
LEFT = 0.1  # of a spread: a code of which the named variables leave less is theirs, and the rest a probe's ridge blown up
LEAST_SHARE = 0.02  # of the rows, on the smaller side: fewer are outliers, no feature


class Cut(NamedTuple):
    """Readings cut in two.

    Attributes:
        threshold: `[s]`.
        low: mean reading under it, `[s]`.
        high: mean reading over it, `[s]`.
        explained: share of the readings' variance that lies between the two means, 0…1, `[s]`.
    """

    threshold: Tensor
    low: Tensor
    high: Tensor
    explained: Tensor


def cut(readings: Tensor, least: int = 1) -> Cut:
    """The best cut of each column in two: exact 2-means on a line (Fisher 1958; Otsu 1979).

    Args:
        readings: `[n, s]`, n ≥ 1.
        least: rows on the smaller side at least.

    Returns:
        The cuts; a column that has none (its values are all the same, or all but fewer than `least`) has its largest value for
        a threshold, which nothing is over, and explains 0.
    """
    ordered = readings.sort(dim=0).values
    n = len(ordered)
    if n == 1:
        return Cut(ordered[0], ordered[0], ordered[0], torch.zeros_like(ordered[0]))
    below = torch.arange(1, n, dtype=ordered.dtype, device=ordered.device).unsqueeze(1)
    total = ordered.cumsum(0)
    low, high = total[:-1] / below, (total[-1] - total[:-1]) / (n - below)
    between = below * (n - below) / n**2 * (high - low) ** 2
    allowed = (torch.minimum(below, n - below) >= least) & (ordered[1:] > ordered[:-1])
    best = between.where(allowed, between.new_tensor(-1.0)).argmax(0, keepdim=True)
    found = allowed.any(0)
    lower, upper = ordered.gather(0, best)[0], ordered[1:].gather(0, best)[0]
    middle = lower + (upper - lower) / 2
    threshold = torch.where(middle < upper, middle, lower)  # of neighbouring floats the middle is one of them
    mean = total[-1] / n
    explained = between.gather(0, best)[0] / readings.var(0, unbiased=False).clamp_min(torch.finfo(readings.dtype).tiny)
    return Cut(
        torch.where(found, threshold, ordered[-1]),
        torch.where(found, low.gather(0, best)[0], mean),
        torch.where(found, high.gather(0, best)[0], mean),
        torch.where(found, explained.clamp(0, 1), 0),
    )


class Splits(NamedTuple):
    """Splits and how they are read: `code = h @ read + bias` is 0 at the centre of the one side and 1 at that of the other.

    Attributes:
        read: `[d, s]`.
        bias: `[s]`.
        threshold: code over which a sample is on the side of 1, `[s]`.
    """

    read: Tensor
    bias: Tensor
    threshold: Tensor

    def codes(self, h: Tensor) -> Tensor:
        """Codes `[n, s]` of activations `[n, d]`, float64."""
        return h.double() @ self.read + self.bias

    def select(self, index: Tensor) -> Splits:
        """Some of the splits."""
        return Splits(self.read[:, index], self.bias[index], self.threshold[index])


def readable_splits(h: Tensor, starts: Tensor, ridge: float = 1e-2, rounds: int = 50) -> Splits:
    """The readable split that each start leads to.

    Args:
        h: activations `[n, d]`.
        starts: directions `[d, s]`.
        ridge: of the probe, in units of the mean eigenvalue, as in decodability.
        rounds: at most; most starts stand still sooner.

    Returns:
        float64 `Splits`, one per start, in their order; several may be the same. A start that leads to none has codes of 0,
        which are not over its threshold.
    """
    h = h.double()
    mean = h.mean(0)
    centred = h - mean
    n = len(h)
    damped = centred.T @ centred / n
    tiny = torch.finfo(torch.float64).tiny
    damped.diagonal().add_((ridge * damped.diagonal().mean()).clamp_min(tiny))
    factor, _ = torch.linalg.cholesky_ex(damped)
    least = max(1, math.ceil(LEAST_SHARE * n))
    read, before = starts.double(), None
    for _ in range(rounds):
        sides = centred @ read
        sides = (sides > cut(sides, least).threshold).double()
        if before is not None and torch.equal(sides, before):
            break
        before = sides
        read = torch.cholesky_solve(centred.T @ (sides - sides.mean(0)) / n, factor)
    found = cut(centred @ read, least)
    width = found.high - found.low
    width = torch.where(width > 0, width, torch.inf)
    read = read / width
    return Splits(read, -(mean @ read) - found.low / width, (found.threshold - found.low) / width)


def split_apart(sides: Tensor) -> Tensor:
    """Which columns of sides `[n, s]` are splits: at least 2 % of the rows are on the smaller side, bool `[s]`."""
    share = sides.double().mean(0)
    return torch.minimum(share, 1 - share) >= LEAST_SHARE


def clarity(codes: Tensor, threshold: Tensor) -> Tensor:
    """How clearly readings fall into two: the share of their variance that the sides explain, 0…1, `[s]`.

    On rows that the splits were not fitted to. A cut through a normal distribution has 2/π = .64: near that there is a
    direction, no split. 1: every sample reads as one of two values.

    Args:
        codes: `[n, s]`.
        threshold: `[s]`.
    """
    sides = (codes > threshold).double()
    a, b = codes - codes.mean(0), sides - sides.mean(0)
    tiny = torch.finfo(codes.dtype).tiny
    return ((a * b).sum(0) ** 2 / ((a**2).sum(0) * (b**2).sum(0)).clamp_min(tiny)).clamp(0, 1)


def beside(sides: Tensor, named: Tensor) -> Tensor:
    """What is left of sides once variables are held fixed, `[n, s]`.

    Args:
        sides: `[n, s]`.
        named: the variables, coded, `[n, q]`.
    """
    z = torch.cat([named.new_ones(len(named), 1), named], 1).double()
    sides = sides.double()
    return sides - z @ torch.linalg.lstsq(z, sides, driver="gelsd").solution


def distinct(sides: Tensor, order: Tensor, most: int, alike: float) -> list[int]:
    """Columns no two of which are alike, taken in order.

    Args:
        sides: `[n, s]`, or what is left of them.
        order: columns, the best first.
        most: columns to take at most.
        alike: absolute correlation over which two count as the same.
    """
    centred = sides.double() - sides.double().mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    taken: list[int] = []
    for j in order.tolist():
        if len(taken) == most:
            break
        if not taken or float((unit[:, taken].T @ unit[:, j]).abs().max()) <= alike:
            taken.append(j)
    return taken
