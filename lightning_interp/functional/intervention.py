"""The effect of an intervention: the truth that every estimate is checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.functional.contribution import Estimate, effects, fit
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import Weights


def interventional_effect(
    change_z: Tensor, change_o: Tensor, weights: Weights, source: Tensor | None = None
) -> Estimate | None:
    """E[f(do(z=1)) − f(do(z=0))], paired by sample, with its interval.

    The slope through the origin of the output's changes on the changes of z: for a binary variable the weighted mean of the
    paired differences, each with the sign of its flip.

    Args:
        change_z: z after the intervention minus z before, `[n]`; samples with 0 are left out.
        change_o: output after minus before, `[n, c]`.
        weights: of the samples.
        source: ids of shared sources, int64 `[n]`; None if samples are independent.

    Returns:
        An `Estimate`, `[1, c]`; None where the intervention moved no sample.
    """
    moved = change_z != 0
    if not bool(moved.any()):
        return None
    dz, n = change_z[moved], int(moved.sum())
    paired = change_o[moved] / dz.unsqueeze(1)
    # One row per sample: a number of its own stands in for the values, so that no two are merged.
    own = torch.arange(n, dtype=torch.float64, device=dz.device).unsqueeze(1)
    rows = table(own, paired, None if source is None else source[moved])
    order = rows.values[:, 0].long()
    _, cell = torch.unique(weights.cell[moved], return_inverse=True)
    per_row = weights._replace(row=(weights.row[moved] * dz**2)[order], cell=cell[order])
    fitted = fit(paired.new_zeros(n, 0), rows, per_row, clustered=source is not None)
    return effects(fitted, torch.ones(1, 1, dtype=torch.float64, device=dz.device))
