"""How much of the output's variance each variable explains.

Up to 10 variables by LMG (Lindeman, Merenda & Gold 1980): the Shapley value of R², the average gain over all orders of entry.
Above that by Johnson's (2000) relative weights, which need one eigendecomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.table import Table

MAX_LMG = 10
_SINGULAR = 1e-8  # smallest eigenvalue of the correlations under which no Cholesky factor is trusted
_AT_ONCE = 2**22  # numbers, 32 MiB


class Spread(NamedTuple):
    """Weighted second moments of variables and outputs about their means.

    Attributes:
        zz: `[q, q]`.
        zo: `[q, c]`.
        total: variance of the output, summed over its columns.
    """

    zz: Tensor
    zo: Tensor
    total: float


def spread(z: Tensor, rows: Table, weight: Tensor) -> Spread:
    """Second moments of `z` `[r, q]` and the outputs, `weight` `[r]` being that of one sample of each row."""
    mass = (rows.count * weight).unsqueeze(1)
    mass = mass / mass.sum()
    zc = z - (mass * z).sum(0)
    oc = rows.mean - (mass * rows.mean).sum(0)
    total = (mass * oc**2).sum() + (weight.unsqueeze(1) * rows.m2).sum() / (rows.count * weight).sum()
    return Spread(zc.T @ (mass * zc), zc.T @ (mass * oc), float(total))


def r_squared(s: Spread, columns: Sequence[int] | None = None) -> float:
    """R² of the outputs on some columns of `z` (all by default), traces over outputs."""
    keep = list(range(len(s.zz))) if columns is None else list(columns)
    if not keep or s.total <= 0:
        return 0.0
    zo = s.zo[keep]
    beta = torch.linalg.lstsq(s.zz[keep][:, keep], zo, driver="gelsd").solution
    return float((beta * zo).sum() / s.total)


def lmg(s: Spread, blocks: Sequence[slice]) -> list[float]:
    """Shapley shares of R², one per block of columns; they sum to R².

    Costs 2^p small solves, made together: for p ≤ 10 variables.
    """
    p = len(blocks)
    inside = (torch.arange(2**p).unsqueeze(1) >> torch.arange(p)) & 1  # which blocks each subset holds
    explained = _r_squared_of_subsets(s, blocks, inside.bool())
    orders = [math.factorial(k) * math.factorial(p - k - 1) / math.factorial(p) for k in range(p)]
    size = inside.sum(1)
    entered = torch.tensor([0.0, *orders], dtype=torch.float64)[size]  # the block comes last of those in the subset
    waiting = torch.tensor([*orders, 0.0], dtype=torch.float64)[size]  # it would come next
    return ((inside * (entered + waiting).unsqueeze(1) - waiting.unsqueeze(1)).T @ explained).tolist()


def _r_squared_of_subsets(s: Spread, blocks: Sequence[slice], inside: Tensor) -> Tensor:
    """R² of every subset of blocks, `[m, p]` to `[m]`."""
    columns = torch.cat([torch.arange(b.start, b.stop) for b in blocks]) if blocks else torch.zeros(0, dtype=torch.int64)
    keep = inside.repeat_interleave(torch.tensor([b.stop - b.start for b in blocks], dtype=torch.int64), dim=1)
    sd = s.zz.diagonal().sqrt()[columns]
    alike = s.zz[columns][:, columns] / sd.outer(sd)
    # A part of a matrix is no worse conditioned than the whole (Cauchy's interlacing): one look tells how to solve them all.
    if s.total <= 0 or not len(columns) or not bool(sd.all()) or float(torch.linalg.eigvalsh(alike)[0]) < _SINGULAR:
        return torch.tensor([r_squared(s, columns[k].tolist()) for k in keep], dtype=torch.float64)
    zo, eye, parts = s.zo[columns] / sd.unsqueeze(1), torch.eye(len(columns), dtype=torch.float64), []
    for some in keep.split(max(1, _AT_ONCE // len(columns) ** 2)):
        left = torch.where(some.unsqueeze(2) & some.unsqueeze(1), alike, eye)
        right = torch.where(some.unsqueeze(2), zo, torch.zeros_like(zo))
        parts.append((torch.cholesky_solve(right, torch.linalg.cholesky(left)) * right).sum((1, 2)))
    return torch.cat(parts) / s.total


def relative_weights(s: Spread, blocks: Sequence[slice]) -> list[float]:
    """Johnson's (2000) relative weights, summed over each block's columns; they sum to R²."""
    if s.total <= 0 or not blocks:
        return [0.0] * len(blocks)
    sd = s.zz.diagonal().sqrt()
    sd = torch.where(sd > 0, sd, 1)  # what does not vary explains nothing
    values, vectors = torch.linalg.eigh(s.zz / sd.outer(sd))
    values = values.clamp_min(0)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T  # loadings of z on its orthogonal counterpart
    inverse = vectors @ torch.diag(torch.where(values > 1e-12, values, torch.inf).rsqrt()) @ vectors.T
    beta = inverse @ (s.zo / sd.unsqueeze(1))
    weight = (root**2 @ (beta**2).sum(1)) / s.total
    return [float(weight[b].sum()) for b in blocks]


def shares(s: Spread, blocks: Sequence[slice]) -> list[float]:
    """Each block's share of the output's variance: LMG up to 10 blocks, relative weights above."""
    return lmg(s, blocks) if len(blocks) <= MAX_LMG else relative_weights(s, blocks)


def debiased_share(s: Spread, block: slice, coefficients: Tensor, covariance: Tensor) -> float:
    """(b'Vb − tr(V·Cov b))⁺ / Var(o): a share that is zero on average for an unused variable.

    Args:
        s: second moments.
        block: the variable's columns.
        coefficients: the block's coefficients `[k, c]`.
        covariance: their sampling covariance, summed over outputs, `[k, k]`.
    """
    v = s.zz[block, block]
    raw = torch.einsum("ic,ij,jc->", coefficients, v, coefficients)
    return max(0.0, float(raw - (v * covariance).sum())) / s.total if s.total > 0 else 0.0
