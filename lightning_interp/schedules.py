"""When to measure, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Due every n epochs or every n training steps; neither: every epoch.

    The first epoch is always due, so that whatever monitors a logged key finds it.

    Attributes:
        every_n_epochs: epochs 0, n, 2n, … are due.
        every_n_train_steps: optimizer steps n, 2n, … are due.
    """

    every_n_epochs: int | None = None
    every_n_train_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_n_epochs is not None and self.every_n_train_steps is not None:
            raise ValueError(
                "`every_n_epochs` and `every_n_train_steps` were both given; give one "
                f"(got {self.every_n_epochs} and {self.every_n_train_steps})."
            )
        for name in ("every_n_epochs", "every_n_train_steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"`{name}` expects a whole number of 1 or more, got {value!r}.")

    @property
    def by_steps(self) -> bool:
        """Whether training steps, not epochs, decide."""
        return self.every_n_train_steps is not None

    def epoch_due(self, epoch: int) -> bool:
        """Whether an epoch (zero-based) is due."""
        return not self.by_steps and epoch % (self.every_n_epochs or 1) == 0

    def step_due(self, step: int) -> bool:
        """Whether the moment after `step` optimizer steps is due."""
        return self.every_n_train_steps is not None and step > 0 and step % self.every_n_train_steps == 0

    def steps_to_next(self, step: int) -> int:
        """Optimizer steps from `step` done to the next due one, 1 or more."""
        n = self.every_n_train_steps or 1
        return n - step % n
