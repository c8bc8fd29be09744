"""Dependence of an activation on a variable, other variables held fixed: correlation and HSIC, differentiable.

Both are free of the scale of every unit, in value and gradient: an activation that shrinks wins nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 4  # samples of a class, below which the unbiased HSIC does not exist


def residuals(x: Tensor, given: Tensor) -> Tensor:
    """What is left of columns after their regression on others and an intercept.

    Args:
        x: `[n, d]`.
        given: `[n, g]`, g = 0 or more, of any rank; carries no gradient.

    Returns:
        `[n, d]`.
    """
    columns = torch.cat([given.new_ones(len(given), 1), given], dim=1)
    u, s, _ = torch.linalg.svd(columns.detach().double(), full_matrices=False)
    basis = u[:, s > s[:1] * max(columns.shape) * torch.finfo(torch.float64).eps].to(x.dtype)
    centred = x - x.mean(0)  # first, so that a large mean costs no digits
    return centred - basis @ (basis.T @ centred)


def standardised(x: Tensor, given: Tensor) -> Tensor:
    """Residuals of columns, each divided by its norm; 0 where nothing is left of a column.

    Args:
        x: `[n, d]`.
        given: `[n, g]`, of any rank; carries no gradient.

    Returns:
        `[n, d]`, columns of norm 1 or 0.
    """
    size = F.pad(x.detach().abs(), (0, 0, 0, 1)).amax(0)  # one row of zeros: there may be no other
    x = x / torch.where(size > 0, size, torch.ones_like(size))  # no square of it can vanish or overflow
    left = residuals(x, given)
    square = (left**2).sum(0)
    rounding = 100 * torch.finfo(x.dtype).eps
    alive = square.detach() > rounding**2 * (x.detach() ** 2).sum(0)
    # Where before the root: the gradient of a root at 0 is not finite.
    return torch.where(alive, left / torch.where(alive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(left))


def partial_correlation(h: Tensor, z: Tensor, given: Tensor) -> Tensor:
    """Correlation of every unit with every column, other columns held fixed.

    Args:
        h: activation `[n, d]`.
        z: columns of the variable `[n, m]`.
        given: columns held fixed `[n, g]`, g = 0 or more, of any rank; they carry no gradient.

    Returns:
        `[m, d]`, −1…1; 0 where a unit or a column is constant, or a function of `given`.
    """
    return standardised(z, given).T @ standardised(h, given)


def gaussian_kernel(x: Tensor) -> Tensor:
    """exp(−‖xᵢ − xⱼ‖²/b), b the median squared distance of two samples.

    Args:
        x: `[n, d]`, n = 2 or more.

    Returns:
        `[n, n]`. The bandwidth carries no gradient. Where more than half of the distances are 0 (a rare level), it is the mean.
    """
    # Not by inner products: equal rows are 0 apart.
    square = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
    apart = square.detach()[i, j]
    median = apart.median()
    bandwidth = torch.where(median > 0, median, apart.mean())
    return torch.exp(-square / torch.where(bandwidth > 0, bandwidth, torch.ones_like(bandwidth)))


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741  # the letters of the paper
    """HSIC of two kernel matrices `[n, n]`, n = 4 or more: 0 on average under independence, so it may be negative.

    Song et al. 2012, the unbiased estimator: with zero diagonals,
    [tr KL + 1'K1·1'L1/((n−1)(n−2)) − 2·1'KL1/(n−2)] / (n(n−3)).
    """
    n = len(k)
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off, l * off  # noqa: E741
    rows, columns = k.sum(0), l.sum(0)
    total = (k * l).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * rows @ columns / (n - 2)
    return total / (n * (n - 3))


def own_hsic(k: Tensor) -> Tensor:
    """HSIC of a variable with itself, biased (Gretton et al. 2005): ‖HKH‖²/(n−1)², never negative."""
    centred = k - k.mean(0)
    centred = centred - centred.mean(1, keepdim=True)
    return (centred**2).sum() / (len(k) - 1) ** 2


def hsic(h: Tensor, z: Tensor, cell_of_given: Tensor | None = None) -> Tensor | None:
    """Normalised HSIC of an activation with a variable within classes, Gaussian kernels, median bandwidths.

    HSIC(h, z)/√(HSIC(h, h)·HSIC(z, z)) in each class (the normalisation of Kornblith et al. 2019), averaged by the samples of
    the classes. Without the denominator the value falls with the width of the layer and with the rarity of a level. It carries
    no gradient: nothing is won by raising it. The numerator is unbiased (Song et al. 2012): the biased one (Gretton et al.
    2005) never reaches 0, and a strong penalty goes on pressing on noise. Units are brought to one within-class variance
    first: else a unit could be hidden by making others large.

    Args:
        h: activation `[n, d]`.
        z: columns of the variable `[n, m]`.
        cell_of_given: class of each sample, int64 `[n]`; None: one class.

    Returns:
        A scalar, about 0 (independent) to 1 (a function of each other), below 0 by chance; None where no class has 4 samples
        and two values of `z`.
    """
    if len(h) < LEAST:
        return None
    cell = torch.zeros(len(h), dtype=torch.int64, device=h.device) if cell_of_given is None else cell_of_given
    classes, place = cell.unique(return_inverse=True)
    units = standardised(h, F.one_hot(place, len(classes)))
    terms, samples = [], 0
    for c in range(len(classes)):
        member = place == c
        n = int(member.sum())
        if n >= LEAST and bool((z[member] != z[member][:1]).any()):
            terms.append(n * _aligned(gaussian_kernel(units[member]), gaussian_kernel(z[member])))
            samples += n
    return torch.stack(terms).sum() / samples if terms else None


def _aligned(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    size = (own_hsic(k.detach()) * own_hsic(l.detach())).sqrt()
    # A class whose activations are all the same depends on nothing.
    return torch.where(size > 0, unbiased_hsic(k, l) / torch.where(size > 0, size, torch.ones_like(size)), k.sum() * 0)
