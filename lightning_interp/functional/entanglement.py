"""Entanglement: how far variables share a layer's directions and neurons.

All of it from second moments: no pass of its own, and no single row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_interp.functional.erasure import Eraser, erased
from lightning_interp.functional.moments import Cross, Moments
from lightning_interp.functional.probe import held_out_r2, ridge_probe

_INDEPENDENT = 1e-6  # relative singular value under which a direction counts as one of the others


def subspace_cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine of the principal angles between two subspaces (Björck & Golub 1973), 0…1.

    For two single directions |cosine|; between subspaces of m and k < m dimensions there are k angles.

    Args:
        a: directions that span the one, `[m, d]`.
        b: directions that span the other, `[k, d]`.

    Returns:
        0 orthogonal, 1 the one within the other; NaN if one of them is zero.
    """
    one, other = _basis(a), _basis(b)
    if not one.shape[1] or not other.shape[1]:
        return float("nan")
    return float(torch.linalg.svdvals(one.T @ other).clamp(max=1).mean())


def _basis(rows: Tensor) -> Tensor:
    # By singular values, not QR: deviations of L levels from their mean span L − 1 dimensions only.
    u, s, _ = torch.linalg.svd(rows.T, full_matrices=False)
    return u[:, (s > _INDEPENDENT * s[0]) & (s > 0)]


def contributions(patterns: Sequence[Tensor], spreads: Sequence[Tensor], variance: Tensor) -> Tensor:
    """What each variable adds to each neuron, as a share of the neuron's variance, a².

    Args:
        patterns: of each variable, activation per unit of z, `[w, d]`.
        spreads: second moments of each variable's columns of z, `[w, w]`.
        variance: of each neuron, `[d]`.

    Returns:
        `[variables, d]`; 0 where a neuron does not vary.
    """
    added = torch.stack([torch.einsum("wd,wv,vd->d", b, s, b) for b, s in zip(patterns, spreads)])
    return torch.where(variance > 0, added / torch.where(variance > 0, variance, 1), 0.0)


def participation(squares: Tensor) -> tuple[Tensor, float]:
    """How many variables a neuron serves: (Σ_v a_v²)² / Σ_v a_v⁴, from 1 to the number of variables.

    Args:
        squares: a², what each variable adds to each neuron, `[variables, d]`.

    Returns:
        Of each neuron, `[d]`, NaN where no variable adds anything; and the mean over neurons, each counted by Σ_v a_v²: what
        carries nothing of the variables has no say.
    """
    total, fourth = squares.sum(0), (squares**2).sum(0)
    each = torch.where(fourth > 0, total**2 / torch.where(fourth > 0, fourth, 1), torch.nan)
    carried = total.sum()
    return each, float((total * each.nan_to_num()).sum() / carried) if carried > 0 else float("nan")


def collateral(
    folds: Sequence[Moments], targets: Sequence[Cross], blocks: Sequence[slice], erasers: Sequence[Eraser]
) -> tuple[Tensor, Tensor]:
    """How well a cross-fitted ridge probe reads every variable, before and after each one is erased.

    Args:
        folds: the two folds' moments.
        targets: in each fold, the columns that probes predict.
        blocks: the columns of each variable.
        erasers: one per variable that is erased.

    Returns:
        R² as things are, `[variables]`, and with each variable erased, `[erasers, variables]`.
    """

    def read(parts: Sequence[Moments], known: Sequence[Cross]) -> Tensor:
        probes = [ridge_probe(m, c) for m, c in zip(parts, known)]
        return (held_out_r2(probes[0], parts[1], known[1], blocks) + held_out_r2(probes[1], parts[0], known[0], blocks)) / 2

    after = []
    for e in erasers:
        left = [c._replace(covariance=c.covariance - (c.covariance @ e.read) @ e.write) for c in targets]
        after.append(read([erased(m, e) for m in folds], left))
    before = read(folds, targets)
    return before, torch.stack(after) if after else before.new_zeros(0, len(blocks))
