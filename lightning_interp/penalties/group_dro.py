"""`GroupDRO`: the worst cell's loss, by weights that follow it (Sagawa et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.penalties.reweighting import group_means
from lightning_interp.penalties.step import Penalty, Step


def group_dro(losses: Tensor, present: Tensor, weight: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
    """One step of Algorithm 1: q_g ← q_g·exp(η·loss_g), normalised; the loss is Σ q_g·loss_g.

    Args:
        losses: mean loss of each cell `[k]`, on the graph.
        present: which cells the batch holds, bool `[k]`.
        weight: q of the last step, `[k]`.
        step_size: η.

    Returns:
        The loss, and the new q.
    """
    raised = weight * torch.where(present, (step_size * losses.detach()).exp(), torch.ones_like(weight))
    raised = raised / raised.sum()
    return (raised * losses).sum(), raised


class GroupDRO(Penalty):
    """Replaces the mean loss by that of the worst cells: (group loss − mean loss) is added.

    *Formula.* Σ q_g (loss_g + C/√n_g), q_g ← q_g·exp(η·(loss_g + C/√n_g)), n_g the samples of the cell seen so far in
    training (the group adjustment is used for q and for nothing that is logged). *When it helps:* labels of the confounder,
    strong regularisation. *When not:* small groups that the network can memorise. *Cost:* none to speak of. *Source:* Sagawa
    et al. 2020, Algorithm 1 and section 3.3.

    Args:
        step_size: η.
        adjustment: C of the group adjustment.
    """

    replaces_loss = True
    needs_target = True

    def __init__(self, step_size: float = 0.01, adjustment: float = 0.0) -> None:
        if step_size <= 0 or adjustment < 0:
            raise ValueError(f"`step_size` expects over 0 and `adjustment` 0 or more, got {step_size} and {adjustment}.")
        self.step_size = step_size
        self.adjustment = adjustment
        self.weight: Tensor | None = None
        self._seen = torch.zeros(0)

    def __call__(self, step: Step) -> Tensor | None:
        """Group loss minus mean loss."""
        if step.losses is None:
            return None
        means, count = group_means(step.losses, step.cell, step.cells)
        if self.weight is None or len(self.weight) != step.cells:  # a cell came up that was not there before
            self.weight = torch.full_like(means.detach(), 1 / step.cells)
            self._seen = torch.nn.functional.pad(self._seen.to(count), (0, step.cells - len(self._seen)))
        self._seen = self._seen + count
        present = count > 0
        adjusted = means + self.adjustment / self._seen.clamp_min(1).to(means.dtype).sqrt()
        # Empty cells have no loss now: their q waits, and takes no part in this step's loss.
        loss, self.weight = group_dro(torch.where(present, adjusted, 0 * means), present, self.weight, self.step_size)
        return loss - step.losses.mean()
