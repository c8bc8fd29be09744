"""`GradientCap`: a penalty pulls at the output no harder than the task does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_interp.errors import InterpError

FADING = 0.75  # of the task's largest gradient, from one measurement to the next


class GradientCap:
    """The factor min(1, κ‖g_t‖/‖g_p‖), g_t and g_p the gradients of task and penalty at the explained output.

    Args:
        cap: κ, over 0.
        lasting: whether g_t is the largest of late: under a budget the cap would vanish with the training loss.
        say: told of what is worth a warning.

    Attributes:
        reference: the largest ‖g_t‖ of late, where it is `lasting`.

    Raises:
        InterpError: κ is not over 0.
    """

    def __init__(self, cap: float, lasting: bool, say: Callable[[str], None]) -> None:
        if not cap > 0:
            raise InterpError(f"`cap` expects over 0, got {cap!r}.")
        self.cap = cap
        self.lasting = lasting
        self.reference = torch.zeros(())
        self._say = say

    def fade(self) -> None:
        """After a measurement: what was long ago counts less."""
        self.reference = self.reference * FADING

    def scale(self, raw: Tensor, term: Tensor, task: Tensor | None) -> Tensor:
        """The factor, detached, a scalar.

        Args:
            raw: the output, on the graph.
            term: the weighted penalty.
            task: the task's loss; None: there is none to compare with, and the factor is 1.
        """
        if task is None:
            return torch.ones((), device=raw.device)
        own = torch.autograd.grad(task, raw, retain_graph=True, allow_unused=True)[0] if task.requires_grad else None
        (ours,) = torch.autograd.grad(term, raw, retain_graph=True, allow_unused=True)
        if own is None or ours is None:
            what = "loss" if own is None else "penalty"
            self._say(f"the {what} does not depend on the output: the penalty is not capped")
            return torch.ones((), device=raw.device)
        allowed = own.double().norm()  # in half precision squares vanish
        if self.lasting:
            sound = torch.where(allowed.isfinite(), allowed, 0.0)  # one broken step must not stay
            allowed = self.reference = torch.maximum(sound, self.reference.to(allowed))
        bound = self.cap * allowed / ours.double().norm().clamp_min(1e-30)
        return bound.clamp(max=1.0).to(term.dtype)
