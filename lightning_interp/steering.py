"""`Steering`: how strongly a penalty acts, and the measurements that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lightning_interp.budget import Budget, Reading, check_measure, reading
from lightning_interp.errors import InterpError
from lightning_interp.events import Event
from lightning_interp.held_out import HeldOut
from lightning_interp.variables import Variable, concept_names

Announce = Callable[[str, "str | None"], None]


class Steering:
    """A penalty's weight: fixed, or the multiplier of a budget; and none while the confounder's share is small enough.

    Args:
        confounder: what should not matter.
        given: what should, and goes with it.
        weight: λ, 0 or more; None: 1, or what the budget asks for.
        budget: instead of a weight, the limit that the confounder's part is held under, see `Budget`: 0 to 1.
        budget_on: "share" or "ratio".
        only_above: the penalty acts only while the confounder's debiased share is over this, 0 to 1; before the first
            measurement it acts.
        announce: told, with a key or None, of what is worth a warning.

    Attributes:
        budget: the `Budget`, or None.
        before: the last measurement before the penalty was first in force.
        measured: the last measurement.
        begun: whether the penalty was ever in force.
        used: the last weight that was.
        held_out: how far training coefficients lie from those of the measurements.

    Raises:
        InterpError: an argument is not usable.
    """

    def __init__(
        self,
        confounder: Variable,
        given: Sequence[Variable],
        weight: float | None,
        budget: float | None,
        budget_on: Literal["share", "ratio"],
        only_above: float | None,
        announce: Announce,
    ) -> None:
        check_measure(budget_on)  # also where no budget is given: a wrong name is no choice
        if weight is not None and not weight >= 0:
            raise InterpError(f"`weight` expects 0 or more, got {weight!r}.")
        self.budget = None if budget is None else Budget(budget, budget_on)
        if weight is not None and self.budget is not None:
            raise InterpError(f"`weight` and `budget` were both given ({weight!r} and {self.budget.limit!r}); give one.")
        if only_above is not None and not 0 < only_above < 1:
            raise InterpError(f"`only_above` expects a share between 0 and 1, got {only_above!r}.")
        if self.budget is not None and self.budget.on == "ratio" and not given:
            raise InterpError("`budget_on='ratio'` compares with the concepts: name them in `given`.")
        self.name = confounder.name
        self.concepts = concept_names(given)
        self.only_above = only_above
        self.before: Event | None = None
        self.measured: Event | None = None
        self.begun = False
        self.used = 0.0
        self.held_out = HeldOut()
        self._fixed = 1.0 if weight is None else weight
        self._in_force = False  # since the last measurement
        self._announce = announce

    @property
    def reads(self) -> str | None:
        """The argument that hangs on measurements, None where the weight is fixed."""
        return "budget" if self.budget is not None else None if self.only_above is None else "only_above"

    @property
    def weight(self) -> float:
        """λ now; 0 while the share is not over `only_above`."""
        if self.only_above is not None and self.measured is not None:
            share = self.reading(self.measured).share
            if share is not None and share <= self.only_above:
                return 0.0
        return self._fixed if self.budget is None else self.budget.multiplier

    def act(self) -> None:
        """The penalty acts in this step, if it has a weight."""
        if self.weight > 0:
            self.begun = self._in_force = True
            self.used = self.weight

    def reading(self, event: Event) -> Reading:
        """What an event says of the confounder."""
        return reading(event, self.name, self.concepts)

    def observe(self, event: Event) -> bool:
        """Take a measurement in; the multiplier answers to what the penalty did, and stands still while it was not in force.

        Returns:
            Whether the event says anything of the confounder; else nothing changes.
        """
        now = self.reading(event)
        on = "share" if self.budget is None else self.budget.on
        known = getattr(now, on) is not None
        if self.reads is not None:
            self._say_what_is_read(event, None if known else on)
        if not known:
            return False
        self.measured = event
        acted, self._in_force = self._in_force, False
        if not self.begun:
            self.before = event
        if self.budget is not None:
            self._steer(self.budget, event, now, acted)
        return True

    def _steer(self, budget: Budget, event: Event, now: Reading, acted: bool) -> None:
        if event.mode != "train":
            self.held_out.take(event)
        if not self.begun:
            budget.start(now)
        if acted:
            budget.update(now)
            cannot = budget.report(self.name)
            if cannot:
                self._announce(cannot, "budget")

    def _say_what_is_read(self, event: Event, missing: str | None) -> None:
        if event.mode == "train":
            self._announce(
                f"`{self.reads}` reads the training batches, whose labels a network can memorise; it holds better on the "
                "validation or probe data of a ConceptMonitor that measures 'contribution'",
                None,
            )
        if missing:
            found = event.contribution.get(self.name)
            why = found.note if found and found.note else f"it has no {missing} of '{self.name}'"
            self._announce(f"`{self.reads}` finds nothing in the event at step {event.step}: {why}", "nothing")

    def settings(self) -> dict[str, Any]:
        """For a certificate, in plain types; "multiplier" is the last that was in force."""
        if self.budget is None:
            return {"weight": self._fixed}
        found = {"budget": self.budget.limit, "budget_on": self.budget.on}
        return {**found, "multiplier": self.used, "held": self.budget.held}

    def notes(self) -> list[str]:
        """What the reader of a certificate must know."""
        cannot = None if self.budget is None else self.budget.report(self.name)
        return [note for note in (None if self.begun else "the penalty never acted", cannot) if note]

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {
            "budget": None if self.budget is None else self.budget.state_dict(),
            "before": None if self.before is None else self.before.to_dict(),
            "measured": None if self.measured is None else self.measured.to_dict(),
            "in_force": [self.begun, self._in_force, self.used],
            "held_out": self.held_out.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.begun, self._in_force, self.used = state["in_force"]
        self.held_out.load_state_dict(state["held_out"])
        if self.budget is not None and state["budget"] is not None:
            self.budget.load_state_dict(state["budget"])
        self.before, self.measured = (
            None if state[name] is None else Event.from_dict(state[name]) for name in ("before", "measured")
        )
