"""From a training batch, its output and its activation to the `Step` that a penalty is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_interp.errors import InterpError, described
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.outputs import explain_output
from lightning_interp.penalties import Step
from lightning_interp.training_design import TrainingDesign
from lightning_interp.variables import Variable

Losses = Callable[[Tensor, Tensor], Tensor]


class TrainingSteps:
    """Knows the coding of the variables so far, and the samples just before the batch.

    Args:
        variables: the confounder first, then the given ones.
        window_rows: samples that batch and window have together at least; 0: no window.
        losses: per-sample task losses `(output, target) -> [n]`.
    """

    def __init__(self, variables: Sequence[Variable], window_rows: int, losses: Losses) -> None:
        self.design = TrainingDesign(variables)
        self.window_rows = window_rows
        self._losses = losses
        self._window: list[tuple[Tensor, Tensor]] = []

    def step(
        self,
        raw: Tensor,
        values: Tensor,
        target: Tensor | None,
        hidden: Tensor | None,
        intervened: Callable[[], Tensor] | None,
        along: Callable[[str, Tensor], Tensor] | None,
        aim: Callable[[Factor, Tensor, Tensor], Tensor | None] | None,
    ) -> Step | None:
        """Take a batch in.

        Args:
            raw: the output, on the graph, float32 or float64.
            values: raw values of the variables, `[n, p]`.
            target: the task's label, or None.
            hidden: as in `Step`.
            intervened: as in `Step`, but gives the raw output.
            along: as in `Step`, but is told the task first.
            aim: gives the confounder's coefficients to aim at, from its coding, what is explained, and the columns of z; None
                where none are wanted.

        Returns:
            The `Step`; None while a variable has shown one value only.

        Raises:
            VariableError: a variable declared binary has more than two values.
            InterpError: `loss_fn` does not give one loss per sample.
        """
        explained = explain_output(raw, target)
        self.design.observe(values)
        factors = self.design.factors()
        past = list(self._window)
        if len(raw) < self.window_rows:
            self._window.append((values, explained.output.detach()))
            while len(self._window) > 1 and sum(len(v) for v, _ in self._window[1:]) >= self.window_rows - len(raw):
                self._window.pop(0)
        if factors is None:
            return None
        coded = self.design.encode(values, factors)
        window = None
        if past:
            before = self.design.encode(torch.cat([v for v, _ in past]).to(raw.device), factors)
            window = (torch.cat([o for _, o in past]).to(raw.device), before.z, before.cell)
        task = explained.task
        return Step(
            explained.output,
            coded.z,
            coded.width,
            coded.cell,
            self.design.cells,
            self.design.frequency.to(raw.device),
            window,
            None if target is None else self._per_sample(raw, target),
            None if intervened is None else lambda: explain_output(intervened(), None, task).output,
            hidden,
            None if along is None else lambda direction: along(task, direction),
            None,
            None if aim is None else aim(factors[0], explained.output.detach(), coded.z),
            task,
            self.design.separable(factors),
        )

    def unlabelled(
        self,
        raw: Tensor,
        target: Tensor | None,
        hidden: Tensor | None,
        along: Callable[[str, Tensor], Tensor] | None,
        shown: Tensor,
    ) -> Step:
        """A batch without a value of any variable, for a confounder by examples; arguments as of `step` and in `Step`."""
        explained = explain_output(raw, target)
        task = explained.task
        return Step(
            explained.output,
            explained.output.new_zeros(len(raw), 0),
            0,
            torch.zeros(len(raw), dtype=torch.int64, device=raw.device),
            1,
            torch.ones(1, dtype=torch.float64, device=raw.device),
            None,
            None if target is None else self._per_sample(raw, target),
            None,
            hidden,
            None if along is None else lambda direction: along(task, direction),
            shown,
            task=task,
        )

    def _per_sample(self, raw: Tensor, target: Tensor) -> Tensor:
        try:
            losses = self._losses(raw, target)
        except Exception as problem:  # it may be the user's
            raise InterpError(
                f"`loss_fn` failed for an output of shape {list(raw.shape)} and a target of shape {list(target.shape)}: "
                f"{described(problem)}"
            ) from problem
        if losses.shape != raw.shape[:1]:
            raise InterpError(
                f"`loss_fn` expects a function that gives one loss per sample, [{len(raw)}], got {list(losses.shape)} for an "
                f"output of shape {list(raw.shape)} and a target of shape {list(target.shape)}."
            )
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {"design": self.design.state_dict(), "window": [list(pair) for pair in self._window]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.design.load_state_dict(state["design"])
        self._window = [(values, output) for values, output in state["window"]]
