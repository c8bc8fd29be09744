"""`RunningPattern`: what a confounder adds to an activation or an output, as training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_interp.functional.direction import told_apart

RIDGE = 1e-6


class RunningPattern:
    """How the confounder's columns move an activation, the given ones held fixed, as training goes on.

    Second moments of [z, 1] and of it with the activation, each step's weight `momentum` times that of the next; B as in
    `functional.direction.pattern`, in units of activation per unit of z.

    Args:
        momentum: 0 (only the last batch) to under 1.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._xx: Tensor | None = None
        self._xh = torch.zeros(0)

    def observe(self, hidden: Tensor, z: Tensor) -> None:
        """Take a batch in: activations `[n, d]`, columns `[n, q]`."""
        x = torch.cat([z, torch.ones_like(z[:, :1])], dim=1).double()
        xx, xh = x.T @ x / len(x), x.T @ hidden.detach().double() / len(x)
        if self._xx is None or self._xx.shape != xx.shape or self._xh.shape != xh.shape:  # a level has come up: begin again
            self._xx, self._xh = xx, xh
            return
        self._xx = self.momentum * self._xx.to(xx) + (1 - self.momentum) * xx
        self._xh = self.momentum * self._xh.to(xh) + (1 - self.momentum) * xh

    def directions(self, width: int) -> Tensor | None:
        """Those of the first `width` columns, `[width, d]`; None before the first batch, or where they go with the others."""
        if self._xx is None or not told_apart(self._xx, width):
            return None
        damped = self._xx + RIDGE * torch.eye(len(self._xx), dtype=self._xx.dtype, device=self._xx.device)
        return torch.linalg.solve(damped, self._xh)[:width]

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        return {"xx": self._xx, "xh": self._xh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._xx, self._xh = state["xx"], state["xh"]
