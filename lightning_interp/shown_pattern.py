"""`ShownPattern`: what a confounder adds to an activation by its example sets, as training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_interp.errors import VariableError

MOST = 512  # examples of each set that are read


class ShownPattern:
    """A direction at a layer, read from example sets under the present weights, anew every so many training steps.

    Args:
        every_n_steps: training steps from one reading to the next, 1 or more.

    Attributes:
        direction: `[1, d]`, as it was last read; None before that, and where the last reading failed.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.forget()

    def forget(self) -> None:
        """Let go of the direction: it is that of the weights of one run of one model."""
        self.direction: Tensor | None = None
        self._steps = 0
        self._worked = False

    def step(self, read: Callable[[], tuple[Tensor, tuple[str, ...]]]) -> tuple[str, ...]:
        """Begin a training step: a collective where a reading is due.

        Args:
            read: gives the direction under the present weights, and notes.

        Returns:
            What is to be said.

        Raises:
            VariableError: the first reading failed; a later one is said, and there is no direction until the next.
        """
        due = self._steps % self.every_n_steps == 0
        self._steps += 1
        if not due:
            return ()
        self.direction = None
        try:
            self.direction, notes = read()
        except VariableError as problem:
            if not self._worked:
                raise
            return (f"there is no penalty until the examples can be read again: {problem}",)
        self._worked = True
        return notes

    def state_dict(self) -> dict[str, Any]:
        """The direction in force, so that a resumed run goes on with it until the next reading is due."""
        return {"direction": self.direction, "steps": self._steps, "worked": self._worked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.direction, self._steps, self._worked = state["direction"], state["steps"], state["worked"]
