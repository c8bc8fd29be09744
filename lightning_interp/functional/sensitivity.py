"""How the output answers to a small step along a variable's direction at a layer, with a test.

The TCAV score (Kim et al. 2018), the fraction of samples whose derivative is positive, is given beside it for familiarity: it
ignores size, and where all gradients are equal (a linear head) it is 0 or 1 for any direction at all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.special import stdtr
from torch import Tensor

from lightning_interp.functional.contribution import Fit, effects


def derivative(gradient: Tensor, direction: Tensor) -> Tensor:
    """S = direction · ḡ, in output units per unit of z.

    Args:
        gradient: mean gradient of each output at the layer, `[c, d]`.
        direction: `[m, d]`, not normalised.

    Returns:
        `[m, c]`.
    """
    return direction @ gradient.T


class Test(NamedTuple):
    """A test of derivatives against zero, each `[m, c]`; NaN where it could not be had.

    Attributes:
        z: the derivative over its standard error.
        p: two-sided p-value, by Student's t.
    """

    z: Tensor
    p: Tensor


def derivative_test(s: Tensor, fitted: Fit, contrast: Tensor, n: float) -> Test:
    """Test S = direction · ḡ, the gradients taken as known.

    The direction is what the variable adds to the activation, so S is the variable's effect on the projection h·ḡ, and has that
    effect's interval: HC2, or CR2 where samples share sources. (A z-score from pooled second moments assumes equal noise in all
    cells and independent samples; where they fail, its nominal 5 % were measured at 9–22 %.)

    Args:
        s: derivatives `[m, c]`.
        fitted: the equation fitted to h·ḡ of single samples, one output per class.
        contrast: rows that turn coefficients into effects, `[m, 1 + q]`.
        n: samples that `s` rests on; the fit may have fewer.

    Returns:
        A `Test`.
    """
    estimate = effects(fitted, contrast)
    se = estimate.se * (fitted.row[0].sum() / n).sqrt()
    z = s / se
    return Test(z, torch.from_numpy(2 * stdtr(estimate.df.numpy(), -z.abs().numpy())))


def holm(p: Tensor) -> Tensor:
    """Holm's (1979) adjustment: `[k]` p-values that keep the family-wise error, NaNs left out."""
    out = torch.full_like(p, torch.nan)
    known = (~p.isnan()).nonzero().flatten()
    order = known[p[known].argsort()]
    factor = torch.arange(len(order), 0, -1, dtype=p.dtype, device=p.device)
    out[order] = (p[order] * factor).cummax(0).values.clamp(max=1) if len(order) else p[order]
    return out


def tcav(gradients: Tensor, direction: Tensor) -> Tensor:
    """Fraction of samples whose directional derivative is positive.

    Args:
        gradients: per sample, `[n, d]`.
        direction: `[m, d]`.

    Returns:
        `[m]`, 0…1.
    """
    return (gradients @ direction.T > 0).double().mean(0)
