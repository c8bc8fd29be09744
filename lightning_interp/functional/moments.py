"""Second moments of a layer's activations, in a form that adds.

Batches, ranks and resumed runs merge by the same `+` (Chan, Golub & LeVeque 1983: centred sums, so that a large mean costs no
digits). Rows belong to groups: group 0 holds every row, the others are cells, levels of one variable, or bins of a control.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_STRIP = 128  # units


class Moments(NamedTuple):
    """Grouped moments of y = [x, h]: x the continuous variables `[q]`, h the activation `[d]`.

    Attributes:
        count: rows in each group, `[g]`.
        mean: mean of y in each group, `[g, q + d]`.
        cross: Σ (x − x̄)(y − ȳ)' within each of the first c groups, `[c, q, q + d]`, c ≤ g.
        gram: Σ (h − h̄)(h − h̄)' over all rows, `[d, d]`; of a wide layer its diagonal only, `[d]`.
    """

    count: Tensor  # type: ignore[assignment]  # the tuple's method of that name is of no use here
    mean: Tensor
    cross: Tensor
    gram: Tensor

    @property
    def columns(self) -> int:
        """q, the number of continuous variables."""
        return self.cross.shape[1]

    @property
    def hidden(self) -> Tensor:
        """Mean activation of each group, `[g, d]`."""
        return self.mean[:, self.columns :]

    @property
    def squares(self) -> Tensor:
        """Σ (h − h̄)² of every unit over all rows, `[d]`."""
        return self.gram if self.gram.ndim == 1 else self.gram.diagonal()

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]  # merging, not joining tuples
        """The moments of both sets of rows together; the groups must be the same."""
        count = self.count + other.count
        # The product n_a·n_b/n before the difference: a group that is empty on one side adds exactly nothing.
        part = torch.where(count > 0, other.count / count.clamp_min(1), torch.zeros_like(count))
        delta = other.mean - self.mean
        both = self.count * part
        mean = torch.where((self.count > 0).unsqueeze(1), self.mean + part.unsqueeze(1) * delta, other.mean)
        q, c = self.columns, len(self.cross)
        cross = self.cross + other.cross + both[:c, None, None] * delta[:c, :q].unsqueeze(2) * delta[:c].unsqueeze(1)
        dh = delta[0, q:]
        between = dh**2 if self.gram.ndim == 1 else dh.outer(dh)
        return Moments(count, mean, cross, self.gram + other.gram + both[0] * between)

    def select(self, index: Tensor, crossed: int | None = None) -> Moments:
        """The moments with groups picked (or repeated) by `index` `[g']`; −1 makes an empty group.

        Args:
            index: int64 `[g']`.
            crossed: for how many of them, the first, cross products are kept: all of them by default.
        """
        empty = index < 0
        at = index.clamp_min(0)
        count = torch.where(empty, torch.zeros_like(self.count[at]), self.count[at])
        mean = torch.where(empty.unsqueeze(1), torch.zeros_like(self.mean[at]), self.mean[at])
        empty, at = empty[:crossed], at[:crossed]
        cross = torch.where(empty[:, None, None], torch.zeros_like(self.cross[at]), self.cross[at])
        return Moments(count, mean, cross, self.gram)


def moments(h: Tensor, x: Tensor, member: Tensor, groups: int, crossed: int | None = None, pairs: bool = True) -> Moments:
    """The moments of rows.

    Args:
        h: pooled activations `[n, d]`, any floating dtype; summed in float64.
        x: continuous variables `[n, q]`.
        member: groups that each row belongs to besides group 0, int64 `[n, m]`, each in 1…groups − 1.
        groups: number of groups, group 0 included.
        crossed: for how many of them, the first, cross products are kept: all of them by default.
        pairs: whether products of all pairs of units are kept, `[d, d]`; else only squares, `[d]`.

    Returns:
        float64 `Moments`.
    """
    n, q, d = len(h), x.shape[1], h.shape[1]
    y = torch.empty(n, q + d, dtype=torch.float64, device=h.device)
    y[:, :q], y[:, q:] = x, h
    count = torch.zeros(groups, dtype=torch.float64, device=h.device)
    total = torch.zeros(groups, y.shape[1], dtype=torch.float64, device=h.device)
    if n == 0:
        cross = y.new_zeros(groups if crossed is None else crossed, q, y.shape[1])
        return Moments(count, total, cross, y.new_zeros(d, d) if pairs else y.new_zeros(d))
    center = y.mean(0)
    y -= center  # group sums of centred rows: a large common mean costs no digits
    ones = torch.ones(n, dtype=torch.float64, device=h.device)
    count[0], total[0] = n, y.sum(0)
    for column in member.unbind(1):
        count.index_add_(0, column, ones)
        total.index_add_(0, column, y)
    mean = total / count.clamp_min(1).unsqueeze(1)
    cross = _crosses(y, q, member, groups if crossed is None else crossed)
    c = len(cross)
    cross -= count[:c, None, None] * mean[:c, :q].unsqueeze(2) * mean[:c].unsqueeze(1)
    left = mean[0, q:]  # of the centring, by rounding
    gram = products(y[:, q:]) - n * left.outer(left) if pairs else (y[:, q:] ** 2).sum(0) - n * left**2
    return Moments(count, torch.where((count > 0).unsqueeze(1), mean + center, mean), cross, gram)


def products(y: Tensor) -> Tensor:
    """Y'Y of `[n, d]`, `[d, d]`; a strip at a time, and only from the diagonal on: the rest is its mirror image."""
    d = y.shape[1]
    out = y.new_empty(d, d)
    for start in range(0, d, _STRIP):
        stop = min(d, start + _STRIP)
        out[start:stop, start:] = y[:, start:stop].T @ y[:, start:]
        out[stop:, start:stop] = out[start:stop, stop:].T
    return out


def _crosses(y: Tensor, q: int, member: Tensor, crossed: int) -> Tensor:
    # Group by group: products of single rows would take n·q·(q + d) numbers.
    out = y.new_zeros(crossed, q, y.shape[1])
    if not q or not crossed:
        return out
    out[0] = y[:, :q].T @ y
    for column in member.unbind(1):
        if int(column.min()) >= crossed:
            continue
        sizes = torch.bincount(column, minlength=crossed)[:crossed].tolist()
        rows = column.argsort(stable=True)[: sum(sizes)].split(sizes)
        for group, mine in enumerate(rows):
            if len(mine):
                out[group] += y[mine, :q].T @ y[mine]
    return out


class Target(NamedTuple):
    """Columns that are regressed on, or regress, the activation.

    Attributes:
        groups: indices of groups that split all rows between them, int64 `[k]`.
        codes: value of each column in each group, `[k, t]`; for a continuous variable its column index and coding instead.
        column: index among the continuous variables, or −1.
        center: of a continuous variable.
        scale: of a continuous variable.
    """

    groups: Tensor
    codes: Tensor
    column: int = -1
    center: float = 0.0
    scale: float = 1.0


class Cross(NamedTuple):
    """Means and second moments of target columns with the activation, per sample.

    Attributes:
        mean: `[t]`.
        variance: `[t]`.
        covariance: with the activation, `[t, d]`.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor

    def columns(self, which: slice) -> Cross:
        """Those of some columns."""
        return Cross(*(part[which] for part in self))


def cross(m: Moments, target: Target, weight: Tensor | None = None) -> Cross:
    """Second moments of a target with the activation.

    Args:
        m: the moments.
        target: the columns.
        weight: weight of one row in each of the target's groups, `[k]`; equal by default.

    Returns:
        `Cross`, normalised by the sum of weights.
    """
    count = m.count[target.groups]
    mass = count if weight is None else count * weight
    mass = (mass / mass.sum()).unsqueeze(1)
    hidden = m.hidden[target.groups]
    centred = hidden - (mass * hidden).sum(0)
    if target.column < 0:
        mean = (mass * target.codes).sum(0)
        codes = target.codes - mean
        return Cross(mean, (mass * codes**2).sum(0), codes.T @ (mass * centred))
    j, q = target.column, m.columns
    x = (m.mean[target.groups, j] - target.center) / target.scale
    mean = (mass[:, 0] * x).sum()
    xc = x - mean
    per_row = (mass[:, 0] / count.clamp_min(1)).unsqueeze(1)
    within = (per_row * m.cross[target.groups, j]).sum(0) / target.scale
    variance = (mass[:, 0] * xc**2).sum() + within[j] / target.scale
    covariance = xc @ (mass * centred) + within[q:]
    return Cross(mean.unsqueeze(0), variance.unsqueeze(0), covariance.unsqueeze(0))


def coarsen(m: Moments, index: Tensor, groups: int) -> Moments:
    """Merge groups: group i goes into group `index[i]`; `gram` is left as it is.

    Args:
        m: the moments, with cross products of all groups.
        index: int64 `[g]`.
        groups: number of groups afterwards.
    """
    q = m.columns
    count = torch.zeros(groups, dtype=m.count.dtype, device=m.count.device).index_add_(0, index, m.count)
    total = m.mean.new_zeros(groups, m.mean.shape[1]).index_add_(0, index, m.count.unsqueeze(1) * m.mean)
    mean = total / count.clamp_min(1).unsqueeze(1)
    delta = m.mean - mean[index]
    between = m.count[:, None, None] * delta[:, :q].unsqueeze(2) * delta.unsqueeze(1)
    cross = m.cross.new_zeros(groups, *m.cross.shape[1:]).index_add_(0, index, m.cross + between)
    return Moments(count, mean, cross, m.gram)
