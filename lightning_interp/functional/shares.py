"""How much of the output's variance each variable explains.

Up to 10 variables by LMG (Lindeman, Merenda & Gold 1980): the Shapley value of R², the average gain over all orders of entry.
Above that by Johnson's (2000) relative weights, which need one eigendecomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.table import Table

MAX_LMG = 10


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

    Costs 2^p small solves: for p ≤ 10 variables.
    """
    p = len(blocks)
    columns = [list(range(b.start, b.stop)) for b in blocks]
    explained = {
        subset: r_squared(s, [c for j in subset for c in columns[j]])
        for size in range(p + 1)
        for subset in combinations(range(p), size)
    }
    shares = [0.0] * p
    for subset, value in explained.items():
        k = len(subset)
        inside = math.factorial(k - 1) * math.factorial(p - k) / math.factorial(p) if k else 0.0
        outside = math.factorial(k) * math.factorial(p - k - 1) / math.factorial(p) if k < p else 0.0
        for j in range(p):
            shares[j] += inside * value if j in subset else -outside * value
    return shares


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
