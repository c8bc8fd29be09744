"""`Recent`: what the outputs of the latest training batches are made of, for a budget that no monitor feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_interp.events import Event
from lightning_interp.functional.table import Table, table
from lightning_interp.measurement import contributions, equation
from lightning_interp.processes import gathered, world
from lightning_interp.variables import Variable


class Recent:
    """The last rows of training, and the equation fitted to them under balanced weights.

    Args:
        variables: in the order of the rows' columns.
        rows: how many are kept by each process, at least.
    """

    def __init__(self, variables: Sequence[Variable], rows: int = 4096) -> None:
        self.variables = tuple(variables)
        self.rows = rows
        self.task: str | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def add(self, values: Tensor, output: Tensor, task: str) -> None:
        """Take in raw values `[n, p]` and what is explained `[n, c]`."""
        self.task = self.task or task
        self._kept.append((values.detach(), output.detach()))
        while sum(len(v) for v, _ in self._kept[1:]) >= self.rows:
            self._kept.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors; the rows of this process only."""
        return {"task": self.task, "kept": [[v.cpu(), o.cpu()] for v, o in self._kept], "process": world()[0]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; rows of another process are not taken in."""
        self.task = state["task"]
        self._kept = [(v, o) for v, o in state["kept"]] if state.get("process", 0) == world()[0] else []

    def event(self, step: int, epoch: int = 0) -> Event | None:
        """The equation of the rows of all processes, which are forgotten then: a collective.

        Args:
            step: optimizer steps done.
            epoch: zero-based.

        Returns:
            An `Event` of mode "train"; None where there are no rows.

        Raises:
            VariableError: a variable cannot be coded, or cannot be told apart from another.
        """
        mine, self._kept = self._kept, []
        packed = (torch.cat([v.cpu() for v, _ in mine]), torch.cat([o.cpu() for _, o in mine])) if mine else None
        parts = [part for part in gathered(packed) if part is not None]
        if not parts:
            return None
        rows: Table = table(torch.cat([v for v, _ in parts]), torch.cat([o for _, o in parts]))
        names, kinds = [v.name for v in self.variables], [v.kind for v in self.variables]
        eq = equation(rows, names, kinds, {}, self.task or "binary")
        fields = contributions(eq)
        return Event(step, epoch, eq.n, eq.weights.mode, "train", eq.task, coding=eq.coding(), notes=eq.notes, **fields)
