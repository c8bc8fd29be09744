"""`GroupDRO`: the worst cell's loss, by weights that follow it (Sagawa et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_interp.penalties.reweighting import group_means
from lightning_interp.penalties.step import Penalty, Step


def group_dro(
    losses: Tensor, present: Tensor, weight: Tensor, step_size: float, adjustment: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """One step of Algorithm 1: q_g ← q_g·exp(η·loss_g), normalised; the loss is Σ q_g·loss_g.

    Args:
        losses: mean loss of each cell `[k]`, on the graph.
        present: which cells the batch holds, bool `[k]`.
        weight: q of the last step, `[k]`.
        step_size: η.
        adjustment: added to each cell's loss where q is raised, `[k]`.

    Returns:
        The loss, and the new q.
    """
    raised = weight * torch.where(present, (step_size * (losses.detach() + adjustment)).exp(), torch.ones_like(weight))
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
        self._seen = self._seen.to(count) + count
        present = count > 0
        adjustment = self.adjustment / self._seen.clamp_min(1).to(means).sqrt()
        # Empty cells have no loss now: their q waits, and takes no part in this step's loss.
        loss, self.weight = group_dro(means, present, self.weight.to(means), self.step_size, adjustment)
        return loss - step.losses.mean()

    def state_dict(self) -> dict[str, Any]:
        """The weights and the samples of each cell."""
        return {"weight": self.weight, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.weight, self._seen = state["weight"], state["seen"]
