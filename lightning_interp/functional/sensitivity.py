"""How the output answers to a small step along a variable's direction at a layer, with a test.

The TCAV score (Kim et al. 2018), the fraction of samples whose derivative is positive, is given beside it for familiarity: it
ignores size, and where all gradients are equal (a linear head) it is 0 or 1 for any direction at all.
"""

from __future__ import annotations

import torch
from scipy.special import ndtr
from torch import Tensor


def derivative(gradient: Tensor, direction: Tensor) -> Tensor:
    """S = direction · ḡ, in output units per unit of z.

    Args:
        gradient: mean gradient of each output at the layer, `[c, d]`.
        direction: `[m, d]`, not normalised.

    Returns:
        `[m, c]`.
    """
    return direction @ gradient.T


def z_score(s: Tensor, gradient: Tensor, residual: Tensor, spread: Tensor) -> Tensor:
    """S over its standard error √(ḡ'Σ_{h|Z}ḡ·[LL']_jj), the gradients taken as known.

    Args:
        s: derivatives `[m, c]`.
        gradient: `[c, d]`.
        residual: residual covariance of the activation given the variables, `[d, d]`.
        spread: `[m]`: diagonal of C L L' C' for the directions' contrasts C; under natural weights C (Z'Z)⁻¹ C'.

    Returns:
        `[m, c]`, standard normal where the variable moves nothing.
    """
    noise = ((gradient @ residual) * gradient).sum(1).clamp_min(0)
    return s / (spread.unsqueeze(1) * noise).sqrt()


def p_value(z: Tensor) -> Tensor:
    """Two-sided p-value of a standard normal score."""
    return torch.from_numpy(2 * ndtr(-z.abs().cpu().numpy())).to(z.device)


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
