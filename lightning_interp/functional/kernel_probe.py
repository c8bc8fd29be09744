"""The ridge probe of a layer with more units than rows, in its dual form.

With fewer rows than units the weights lie in the span of the rows, so that products of rows say all: the predictions are those
of `ridge_probe` on the same rows, and nothing of size units × units is made (Saunders, Gammerman & Vovk 1998). A random
projection to fewer units was measured and left: a quarter of the units keeps less of what can be read than half of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_interp.functional.erasure import Eraser
from lightning_interp.functional.probe import RIDGE, ROUNDING, block_r2

FLAT = 1e-13  # of products: what is less of them, once centred, is rounding
_BLOCK = 512


def row_products(rows: Tensor) -> Tensor:
    """Products of all pairs of rows about their mean, `[k, d]` to `[k, k]`."""
    centred = rows - rows.mean(0)
    size = float((rows**2).sum())
    if float((centred**2).sum()) <= ROUNDING**2 * size:  # constant to rounding
        return rows.new_zeros(len(rows), len(rows))
    out = rows.new_empty(len(rows), len(rows))
    for i in range(0, len(rows), _BLOCK):  # half of them: the other half is the same
        end = i + _BLOCK
        out[i:end, i:] = centred[i:end] @ centred[i:].T
        out[end:, i:end] = out[i:end, end:].T
    return out


def kernel_probe(products: Tensor, fitted: Tensor, y: Tensor, units: int, ridge: float = RIDGE) -> Tensor:
    """Predictions for every row by ridge probes that are fitted to some of them.

    Args:
        products: of all rows about any one point, `[k, k]`.
        fitted: which rows the probes are fitted to, int64 `[m]`.
        y: targets of all rows, `[k, t]`; those outside `fitted` are not looked at.
        units: d, the number of units of the layer.
        ridge: α in units of the mean eigenvalue tr(S)/d, as in `ridge_probe`.

    Returns:
        `[k, t]`.
    """
    to_fitted = products[:, fitted]
    own = to_fitted[fitted]
    size = own.diagonal().sum()
    middle = own.mean(0)
    own = own - middle - middle.unsqueeze(1) + middle.mean()
    across = to_fitted - middle - to_fitted.mean(1, keepdim=True) + middle.mean()
    mean, spread = y[fitted].mean(0), own.diagonal().sum()
    if spread <= FLAT * size:  # no direction to read
        return mean.expand(len(y), -1)
    alpha = ridge * spread / units
    own.diagonal().add_(alpha.clamp_min(1e-300))
    factor, info = torch.linalg.cholesky_ex(own)
    if int(info):
        return mean.expand(len(y), -1)
    return mean + across @ torch.cholesky_solve(y[fitted] - mean, factor)


def kernel_collateral(
    rows: Tensor, second: Tensor, y: Tensor, blocks: Sequence[slice], erasers: Sequence[Eraser]
) -> tuple[Tensor, Tensor]:
    """How well cross-fitted probes read every variable before and after each one is erased, as `entanglement.collateral`.

    Args:
        rows: activations `[k, d]`.
        second: whether each is in the second fold, bool `[k]`.
        y: the columns that probes predict, `[k, t]`.
        blocks: the columns of each variable.
        erasers: one per variable that is erased.

    Returns:
        R² as things are, `[variables]`, and with each variable erased, `[erasers, variables]`.
    """

    def read(products: Tensor) -> Tensor:
        sides = []
        for fitted, held in ((~second, second), (second, ~second)):
            guess = kernel_probe(products, fitted.nonzero().flatten(), y, rows.shape[1])[held]
            about = y[held] - y[held].mean(0)
            sides.append(block_r2(((y[held] - guess) ** 2).sum(0), (about**2).sum(0), blocks))
        return (sides[0] + sides[1]) / 2

    products, centred = row_products(rows), rows - rows.mean(0)
    before, after = read(products), []
    for e in erasers:
        a, b = centred @ e.read, centred @ e.write.T  # write's rows are orthonormal
        both = a @ b.T
        left = products - both - both.T + a @ a.T
        nothing = left.diagonal().sum() <= FLAT * products.diagonal().sum()
        after.append(read(torch.zeros_like(left) if nothing else left))
    return before, torch.stack(after) if after else before.new_zeros(0, len(blocks))
