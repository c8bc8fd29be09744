"""The equation: outputs regressed on the coded variables, with intervals that hold under unequal variances.

b = (Z'WZ)⁻¹Z'W o. Intervals are HC2 sandwiches (MacKinnon & White 1985) with Welch-type degrees of freedom; where samples share
a source, their clustered form CR2 (Bell & McCaffrey 2002). Rows may be grouped: a row stands for `count` samples with the
same variables, by the mean of their outputs and the sum of squares about it, which loses nothing that is needed here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_interp.functional.table import Table, group_sum
from lightning_interp.functional.unique import unique_rows
from lightning_interp.functional.weights import MAX_CELLS, Weights

MAX_LEVERAGE = 0.99
FEW = 5
MAX_EXACT_DF = 2**28  # rows × columns³ up to which Bell & McCaffrey's degrees of freedom are exact; above it a lower bound
MAX_SOURCES = 2**26  # sources × columns² up to which a clustered fit keeps three matrices of each, 512 MiB at most for one
_RANK_TOLERANCE = 1e-9
_BLOCK = 2**24  # numbers at a time


class RankError(ValueError):
    """The columns of the design are linearly dependent.

    Attributes:
        involved: indices of the columns of z in the dependency.
    """

    def __init__(self, involved: list[int]) -> None:
        super().__init__(f"columns {involved} of the design are linearly dependent")
        self.involved = involved


class Sources(NamedTuple):
    """What a clustered fit keeps of each source, with Q = √W Z (Z'WZ)^(−½).

    Attributes:
        scores: Σ L (I − H)^(−½) e, `[g, 1 + q, c]`.
        gram: K = Q'Q of the source, `[g, 1 + q, 1 + q]`.
        noise: Q'WQ of the source, `[g, 1 + q, 1 + q]`.
        shrunk: (I − K)^(−½) (Z'WZ)^(−½), `[g, 1 + q, 1 + q]`.
    """

    scores: Tensor
    gram: Tensor
    noise: Tensor
    shrunk: Tensor

    def bell_mccaffrey(self, contrast: Tensor) -> Tensor:
        """(tr Ω)²/tr Ω², Ω the covariance of the sources' scores where errors are independent and alike, `[m]`."""
        t = torch.einsum("gij,mj->mgi", self.shrunk, contrast)
        u, p = torch.einsum("gij,mgj->mgi", self.gram, t), torch.einsum("gij,mgj->mgi", self.noise, t)
        a = torch.cat([p, u, -(u @ self.noise.sum(0))], dim=2)
        b = -torch.cat([u, p, u], dim=2)  # Ω = diag(t'p) + AB', of low rank: no sum over pairs of sources
        own, low = (t * p).sum(2), (a * b).sum(2)
        square = (own**2 + 2 * own * low).sum(1) + ((a.mT @ a) * (b.mT @ b)).sum((1, 2))
        return (own + low).sum(1) ** 2 / square


class Fit(NamedTuple):
    """A weighted least squares fit of the outputs on [1, z].

    Attributes:
        coefficients: `[1 + q, c]`, the intercept first.
        influence: L = (Z'WZ)⁻¹Z'W, of one sample of each row, `[r, 1 + q]`.
        residual: deviation of each row's mean output from the fit, `[r, c]`.
        squares: per row the sum over its samples of e²/(1−h), `[r, c]`; unclustered fits only.
        sources: what a clustered fit keeps of each source, else None.
        leverage: largest leverage of a sample (or of a source), 0…1; NaN where there are too many sources for intervals.
        basis: the regressors [1, z] of each row, `[r, 1 + q]`.
        row: each row's (count, cell, source), float64 `[r]`, int64 `[r]`, int64 `[r]`.
    """

    coefficients: Tensor
    influence: Tensor
    residual: Tensor
    squares: Tensor
    sources: Sources | None
    leverage: float
    basis: Tensor
    row: tuple[Tensor, Tensor, Tensor]

    def variance(self, contrast: Tensor) -> Tensor:
        """Sampling variance of `contrast @ coefficients`, `[m, 1 + q]` to `[m, c]`."""
        if self.sources is not None:
            return (torch.einsum("mq,gqc->gmc", contrast, self.sources.scores) ** 2).sum(0)
        return (contrast @ self.influence.T) ** 2 @ self.squares

    def covariance(self, block: slice) -> Tensor:
        """Sampling covariance of a block of coefficients, summed over outputs, `[k, k]`."""
        if self.sources is not None:
            s = self.sources.scores[:, block]
            return torch.einsum("gic,gjc->ij", s, s)
        weighted = self.influence[:, block] * self.squares.sum(1, keepdim=True)
        return weighted.T @ self.influence[:, block]

    def degrees_of_freedom(self, contrast: Tensor) -> Tensor:
        """Degrees of freedom of `contrast @ coefficients`, `[m]`, at least 1.

        Welch's over cells, (Σ L²)² / Σ_cell (Σ_{i∈cell} L²)² / max(n_cell − 1, ½), or Bell & McCaffrey's (2002) where these are
        fewer, as they are for the slope of a continuous variable. With sources, L is summed over a source within a cell first,
        and n_cell counts sources. Many columns and rows together: of Bell & McCaffrey's a lower bound, which at so many rows
        changes no interval that matters.
        """
        count, cell, source = self.row
        weight = contrast @ self.influence.T  # [m, r]
        cells = int(cell.max()) + 1
        if self.sources is None:
            size = group_sum(count, cell, cells)
            square = group_sum((count * weight**2).T, cell, cells)
        else:
            pair, unit = unique_rows(torch.stack([cell, source], 1))
            total = group_sum((count * weight).T, unit, len(pair))
            size = group_sum(torch.ones(len(pair), dtype=torch.float64, device=count.device), pair[:, 0], cells)
            square = group_sum(total**2, pair[:, 0], cells)
        welch = square.sum(0) ** 2 / (square**2 / (size - 1).clamp_min(0.5).unsqueeze(1)).sum(0)
        fewer = self._bell_mccaffrey(weight) if self.sources is None else self.sources.bell_mccaffrey(contrast)
        return torch.minimum(welch, fewer).clamp_min(1.0)

    def _bell_mccaffrey(self, weight: Tensor) -> Tensor:
        # Satterthwaite's (tr Ω)²/tr Ω² for Σ a_i e_i² with a = L²/(1−h) and e = Mε, Var ε = I: tr Ω² = Σ_ik a_i a_k (MM')_ik²,
        # with MM' = I − UV' of low rank, so that it takes sums over q × q matrices and none over pairs of samples.
        count, x = self.row[0], self.basis
        p, gram = self.influence, self.influence.T @ (count.unsqueeze(1) * self.influence)
        rest = p - x @ gram
        own = 1 - (x * p).sum(1) - (x * rest).sum(1)  # diagonal of MM'
        a = weight**2 / (1 - (x * p).sum(1)).clamp_min(1e-12)  # [m, r]
        mass = count * a
        if len(x) * x.shape[1] ** 3 > MAX_EXACT_DF:
            # a_i a_k ≤ (a_i² + a_k²)/2 gives tr Ω² ≤ Σ a_i² (MM'MM')_ii: fewer degrees of freedom, never more.
            square = own + ((rest @ (x.T @ (count.unsqueeze(1) * x))) * rest).sum(1)
            return (mass @ own) ** 2 / ((mass * a) @ square)
        u, v = torch.cat([x, p, -(x @ gram)], 1), torch.cat([p, x, x], 1)
        pairs = torch.stack([((u.T * one) @ u * ((v.T * one) @ v)).sum() for one in mass])
        square = (mass * a * (2 * own - 1)).sum(1) + pairs
        return (mass * own).sum(1) ** 2 / square


def fit(z: Tensor, rows: Table, weights: Weights, clustered: bool = False) -> Fit:
    """Fit the equation.

    Args:
        z: coded variables `[r, q]`, without the intercept.
        rows: the outputs.
        weights: from `sample_weights`.
        clustered: whether `rows.source` names sources that samples share.

    Returns:
        The `Fit`.

    Raises:
        RankError: the columns of [1, z] are linearly dependent under the weights.
    """
    x = torch.cat([torch.ones_like(z[:, :1]) if z.shape[1] else z.new_ones(len(z), 1), z], dim=1)
    mass = rows.count * weights.row
    values, vectors = torch.linalg.eigh(x.T @ (mass.unsqueeze(1) * x))
    if values[0] <= _RANK_TOLERANCE * values[-1]:
        null = vectors[:, values <= _RANK_TOLERANCE * values[-1]].abs().amax(1)
        raise RankError([i - 1 for i in (null > 1e-6).nonzero().flatten().tolist() if i])
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T  # (Z'WZ)^(−1/2)
    q = x @ root  # rows of an orthonormal basis, but for √w
    influence = (q * weights.row.unsqueeze(1)) @ root
    coefficients = influence.T @ (rows.count.unsqueeze(1) * rows.mean)
    residual = rows.mean - x @ coefficients
    labels = (rows.count, weights.cell, rows.source)
    if clustered and len(torch.unique(rows.source)) * x.shape[1] ** 2 > MAX_SOURCES:
        return Fit(coefficients, influence, residual, torch.full_like(residual, math.nan), None, math.nan, x, labels)
    if clustered:
        sources, leverage = _sources(q, root, mass, weights.row, residual, rows.source)
        return Fit(coefficients, influence, residual, torch.empty(0), sources, leverage, x, labels)
    h = weights.row * (q**2).sum(1)
    squares = (rows.m2 + rows.count.unsqueeze(1) * residual**2) / (1 - h).clamp_min(1e-12).unsqueeze(1)
    return Fit(coefficients, influence, residual, squares, None, float(h.max()), x, labels)


def _sources(q: Tensor, root: Tensor, mass: Tensor, weight: Tensor, residual: Tensor, source: Tensor) -> tuple[Sources, float]:
    # A source's score equals (Z'WZ)^(−½) (I − K)^(−½) Q'√W e: p × p matrices, however many samples a source has.
    _, unit = torch.unique(source, return_inverse=True)
    units, p = int(unit.max()) + 1, q.shape[1]
    k, noise = q.new_zeros(units, p, p), q.new_zeros(units, p, p)
    for rows in torch.arange(len(q), device=q.device).split(max(1, _BLOCK // p**2)):
        products = q[rows].unsqueeze(2) * (mass[rows, None] * q[rows]).unsqueeze(1)
        k.index_add_(0, unit[rows], products)
        noise.index_add_(0, unit[rows], weight[rows, None, None] * products)
    u = group_sum((mass[:, None, None] * q.unsqueeze(2) * residual.unsqueeze(1)).flatten(1), unit, units)
    values, vectors = torch.linalg.eigh(k)
    shrink = (1 - values).clamp_min(1e-12).rsqrt()
    shrunk = vectors @ (shrink.unsqueeze(2) * vectors.mT) @ root
    return Sources(shrunk.mT @ u.view(units, p, -1), k, noise, shrunk), float(values.max())


class Estimate(NamedTuple):
    """Effects with intervals, each `[m, c]`; NaN where withheld.

    Attributes:
        value: the effects.
        se: standard errors.
        low: lower end of the interval.
        high: upper end.
        df: degrees of freedom, `[m, c]`.
        robustness: robustness value of Cinelli & Hazlett (2020), 0…1.
        note: why intervals are withheld ("withheld: …"), or that a cell is small ("few"), or None.
    """

    value: Tensor
    se: Tensor
    low: Tensor
    high: Tensor
    df: Tensor
    robustness: Tensor
    note: str | None


def effects(fitted: Fit, contrast: Tensor, level: float = 0.95) -> Estimate:
    """Effects `contrast @ coefficients` with their intervals.

    Args:
        fitted: the equation.
        contrast: `[m, 1 + q]`.
        level: coverage of the intervals.

    Returns:
        An `Estimate`. It speaks of this network over the probe set's population, given no hidden factor.
    """
    value = contrast @ fitted.coefficients
    note = interval_note(fitted)
    nan = torch.full_like(value, math.nan)
    if math.isnan(fitted.leverage):
        return Estimate(value, nan, nan, nan, nan, nan, note)
    df = fitted.degrees_of_freedom(contrast).unsqueeze(1).expand_as(value)
    if note and note.startswith("withheld"):
        return Estimate(value, nan, nan, nan, df, nan, note)
    se = fitted.variance(contrast).sqrt()
    t = torch.from_numpy(stdtrit(df.cpu().numpy(), 0.5 + level / 2)).to(value.device)
    return Estimate(value, se, value - t * se, value + t * se, df, robustness_value(value / se, df), note)


def interval_note(fitted: Fit) -> str | None:
    """Why intervals are withheld ("withheld: …"), "few: …" where the smallest cell has under 5, or None."""
    count, cell, source = fitted.row
    cells = int(cell.max()) + 1
    what = "samples"
    if fitted.sources is not None:
        pair, _ = unique_rows(torch.stack([cell, source], 1))
        count, cell, what = torch.ones(len(pair), dtype=torch.float64, device=count.device), pair[:, 0], "sources"
    smallest = int(group_sum(count, cell, cells).min())
    if math.isnan(fitted.leverage):
        return f"withheld: too many sources for clustered intervals with {fitted.basis.shape[1] - 1} columns"
    if fitted.leverage > MAX_LEVERAGE:
        return f"withheld: a sample or source has leverage {fitted.leverage:.3f}, over {MAX_LEVERAGE}"
    if smallest < 2 and cells <= MAX_CELLS:
        return f"withheld: the smallest cell has {smallest} of the 2 {what} that an interval needs"
    return f"few: the smallest cell has {smallest} of the {FEW} {what} that would be enough" if smallest < FEW else None


def robustness_value(t: Tensor, df: Tensor) -> Tensor:
    """Partial R² that a hidden factor would need, with output and variable both, to bring an effect to zero.

    Cinelli & Hazlett (2020), eq. 19 with q = 1: f² = t²/df, RV = ½(√(f⁴ + 4f²) − f²).
    """
    return 2 / (1 + (1 + 4 * df / t**2).sqrt())  # the same, without cancellation at large t
