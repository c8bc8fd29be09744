"""`BalancedReweighting`: every cell of the variables counts the same in the task's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.penalties.step import Penalty, Step


def balanced_loss(losses: Tensor, cell: Tensor, frequency: Tensor) -> Tensor:
    """Mean loss with weights 1/(K·frequency of the cell).

    Args:
        losses: per sample `[n]`.
        cell: each sample's cell, int64 `[n]`.
        frequency: share of each cell in training, `[k]`.
    """
    weight = 1 / (len(frequency) * frequency[cell])
    return (weight.to(losses.dtype) * losses).mean()


class BalancedReweighting(Penalty):
    """Replaces the mean loss by one in which every cell counts the same: (balanced loss − mean loss) is added.

    *Formula.* w = 1/(K·frequency of the cell), frequencies counted over the training samples seen so far. *When it helps:*
    labels of the confounder, mild correlations. *When not:* alone it leaves the model using the confounder (see the README's
    table); with a handful of counter-examples they are memorised. *Cost:* none to speak of. *Source:* importance weighting
    (Shimodaira 2000), as a baseline in Sagawa et al. (2020).
    """

    replaces_loss = True
    needs_target = True

    def __call__(self, step: Step) -> Tensor | None:
        """Balanced loss minus mean loss."""
        if step.losses is None:
            return None
        return balanced_loss(step.losses, step.cell, step.frequency) - step.losses.mean()


def group_means(losses: Tensor, cell: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Mean loss of each cell `[cells]` (0 where empty) and the samples in it `[cells]`."""
    count = torch.bincount(cell, minlength=cells)
    total = torch.zeros(cells, dtype=losses.dtype, device=losses.device).index_add(0, cell, losses)
    return total / count.clamp_min(1), count
