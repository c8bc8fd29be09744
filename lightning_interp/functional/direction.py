"""Directions: which way a variable moves a layer's activation.

The default is the multivariate *pattern*: what the variable adds to the activation, the others held fixed (after Haufe et al.
2014, whose univariate pattern does not hold them fixed). A probe's weights (*filter*) say how to read a variable, not how it is
written: they also cancel whatever is correlated with it. All rows are `[m, d]`, one per column of the variable.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pattern(zz: Tensor, zh: Tensor) -> Tensor:
    """Multivariate pattern B = (Z'WZ)⁻¹Z'WH, in units of activation per unit of z.

    Args:
        zz: centred weighted second moments of z, `[q, q]`.
        zh: those of z with the activation, `[q, d]`.

    Returns:
        `[q, d]`.
    """
    return torch.linalg.solve(zz, zh)


def told_apart(moments: Tensor, width: int) -> bool:
    """Whether the confounder's columns are no function of the others: where they are, a ridge shares out what is not theirs.

    Args:
        moments: of the columns `[z, 1]`, `[q + 1, q + 1]`.
        width: number of the confounder's columns, which come first.
    """
    whole, rest = (torch.linalg.matrix_rank(m.double(), rtol=1e-6, hermitian=True) for m in (moments, moments[width:, width:]))
    return int(whole - rest) == width


def ridge_filter(hh: Tensor, zh: Tensor, ridge: float = 1e-2) -> Tensor:
    """Weights of a ridge probe, (S + αI)⁻¹c with α = ridge·tr(S)/d.

    Args:
        hh: covariance of the activation, `[d, d]`.
        zh: its covariance with the variable's columns, `[m, d]`.
        ridge: α in units of the mean eigenvalue.

    Returns:
        `[m, d]`.
    """
    d = len(hh)
    alpha = ridge * hh.diagonal().sum() / d
    alpha = torch.where(alpha > 0, alpha, torch.ones_like(alpha))  # nothing varies: any will do
    return torch.linalg.solve(hh + torch.diag(alpha.expand(d)), zh.T).T


def mean_difference(level_means: Tensor) -> Tensor:
    """Difference of class means (FastCAV, Schmalwasser et al. 2025).

    Args:
        level_means: mean activation of each level, `[levels, d]`.

    Returns:
        `[1, d]`, second level minus first, for two levels; else each level minus the mean of levels, `[levels, d]`.
    """
    if len(level_means) == 2:
        return level_means[1:] - level_means[:1]
    return level_means - level_means.mean(0)


def lda(within: Tensor, level_means: Tensor, ridge: float = 1e-2) -> Tensor:
    """Fisher's linear discriminant: the within-class covariance divided out of the mean difference.

    Args:
        within: pooled within-level covariance, `[d, d]`.
        level_means: `[levels, d]`.
        ridge: shrinkage in units of the mean eigenvalue.

    Returns:
        As `mean_difference`.
    """
    return ridge_filter(within, mean_difference(level_means), ridge)


def drift(now: Tensor, before: Tensor) -> float:
    """1 − mean cosine of the principal angles between two subspaces of equal dimension, `[m, d]` each.

    0: the same subspace; 1: orthogonal. NaN if one of them is zero.
    """
    if not (now.norm(dim=1) > 0).all() or not (before.norm(dim=1) > 0).all():
        return float("nan")
    a, b = _basis(now), _basis(before)
    return float(1 - torch.linalg.svdvals(a.T @ b).clamp(max=1).sum() / max(a.shape[1], b.shape[1]))


def _basis(rows: Tensor) -> Tensor:
    # By singular values, not QR: deviations of L levels from their mean span L − 1 dimensions only.
    u, s, _ = torch.linalg.svd(rows.T, full_matrices=False)
    return u[:, s > 1e-6 * s[0]]
