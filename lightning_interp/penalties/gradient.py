"""`GradientPenalty`: the output must not react where the confounder is written (Right-Reason ClArC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_interp.penalties.contribution import halves
from lightning_interp.penalties.step import Penalty, Step
from lightning_interp.running_pattern import RunningPattern


def gradient_penalty(derivative: Tensor) -> Tensor:
    """Mean squared derivative, summed over outputs.

    Args:
        derivative: along the confounder's direction, `[n, c]`.
    """
    return (derivative**2).sum(1).mean()


class GradientPenalty(Penalty):
    """Makes the output indifferent to the confounder's direction at a layer.

    *Formula.* E(∂f/∂h · v)², summed over outputs and the confounder's columns: v is the multivariate pattern of the column (in
    activation per unit of z, so that the derivative is in logits per unit, the sensitivity that the monitor shows), estimated
    over the preceding batches. Of a confounder by examples v is the difference of the sets' mean activations under the present
    weights, read in evaluation mode every `every_n_steps` training steps (at most 512 examples of each set), and no label of
    any variable is used. The derivative is a finite difference through what stands above the layer: no graph of second order.
    Every other sample of a cell is moved the other way, for a batch norm would subtract what all samples share. *When it
    helps:* the confounder is written in one direction of a layer that the head reads linearly; no label of the task is used.
    *When not:* at early layers, where one direction is not all of the confounder. *Cost:* one more forward pass above the layer
    (two under autocast, and where the step changed its inputs) and a backward pass there: a step takes 1.05 plain ones on a
    small CNN at the layer that feeds the head, 1.3 in the middle. What stands below the layer is not computed again, but for
    what happens outside of modules, or in modules that return no plain tensor or whose result is overwritten in place. Compiled
    parts run eagerly, activation checkpoints keep that pass's activations, and what the modules below gave is kept until the
    penalty is known. To read examples is a forward pass over them. *Measured* (digits on grass, 5 seeds, before the linear
    head): no better than balanced weights alone, worst group 0.43, nor is it on Adult, on white frames of pictures or on
    film reviews: the layers below write the confounder along other directions
    than the one that is held still. *Source:* Dreyer et al. 2024, Right-Reason ClArC (there by a double backward pass).

    Args:
        momentum: of the running estimate of v from labels, 0 to under 1.
        every_n_steps: training steps from one reading of v from examples to the next, 1 or more.
    """

    needs_labels = False
    needs_contrast = True
    needs_layer = True
    needs_derivative = True

    def __init__(self, momentum: float = 0.9, every_n_steps: int = 10) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` expects 0 to under 1, got {momentum}.")
        if not isinstance(every_n_steps, int) or isinstance(every_n_steps, bool) or every_n_steps < 1:
            raise ValueError(f"`every_n_steps` expects a whole number of 1 or more, got {every_n_steps!r}.")
        self.every_n_steps = every_n_steps
        self._pattern = RunningPattern(momentum)

    def __call__(self, step: Step) -> Tensor | None:
        """The term; None where the direction is not known."""
        if step.hidden is None or step.along is None:
            return None
        found = self._directions(step.hidden, step)
        if found is None or not bool((found.norm(dim=1) > 0).all()):
            return None
        sign = 1 - 2 * halves(step.cell).to(found).unsqueeze(1)
        return torch.stack([gradient_penalty(step.along(sign * v)) for v in found]).sum()

    def _directions(self, hidden: Tensor, step: Step) -> Tensor | None:
        if step.shown is not None:
            return step.shown.to(hidden.device)
        self._pattern.observe(hidden, step.z)
        return self._pattern.directions(step.width)

    def state_dict(self) -> dict[str, Any]:
        """The running moments."""
        return self._pattern.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._pattern.load_state_dict(state)
