"""`Budget`: a multiplier that holds a confounder's part of the output at or under a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_interp.errors import InterpError, nearest
from lightning_interp.events import Event

ON = ("share", "ratio")
GAIN, BRAKE = 0.3, 0.3  # of the integral and of the proportional part, per measurement, in log multiplier
AIM = 0.8  # of the limit: steered to the limit itself, every other measurement would be over it
LOWEST, HIGHEST = 0.01, 100.0  # of the multiplier: from the lowest, 14 measurements over the limit bring it back to 1
FLOOR = 0.5  # of the concepts' share at the start


class Reading(NamedTuple):
    """What one event says of a confounder.

    Attributes:
        share: its debiased share of the output's variance, 0…1; None where withheld.
        ratio: its effect over the largest of the concepts', 0 or more; None where withheld.
        concepts: the concepts' debiased shares together; None without concepts.
    """

    share: float | None
    ratio: float | None
    concepts: float | None


def reading(event: Event, confounder: str, concepts: Sequence[str]) -> Reading:
    """Read an event.

    Args:
        event: the event.
        confounder: name of the variable.
        concepts: names of the given variables that should matter.
    """
    shares = [s.debiased for name in concepts if (s := event.contribution.get(name)) and s.debiased is not None]
    own = event.contribution.get(confounder)
    sizes = [abs(event.magnitude[name]) for name in concepts if name in event.magnitude]
    size = event.magnitude.get(confounder)
    ratio = None if size is None or not sizes or max(sizes) == 0 else abs(size) / max(sizes)
    return Reading(own.debiased if own else None, ratio, sum(shares) if shares else None)


def check_measure(on: str) -> None:
    """Raise an InterpError unless a budget can be put on that."""
    if on not in ON:
        raise InterpError(f"`budget_on={on!r}` is none of {', '.join(ON)}.{nearest(on, ON)}")


class Budget:
    """Dual control of a multiplier: over the limit it grows, under it it falls.

    log m follows a PI law on e, the logarithm of measured over `AIM`·limit, held within ±1: the integral moves by `GAIN`·e at
    each measurement, and `BRAKE`·(change of e) is added at once. In the logarithm m is never negative, and one law serves
    penalties whose natural weights are far apart. The integral stands still at the ends of m's range (no wind-up). So that the
    model is not destroyed for the budget, m does not grow while the concepts' share is under half of what it was at the start.

    Args:
        limit: 0 to 1, both excluded.
        on: "share" (the debiased share of the output's variance) or "ratio" (its effect over the largest concept's).

    Attributes:
        multiplier: m.
        frozen: whether the concepts' share is under its floor.

    Raises:
        InterpError: the limit or `on` is not usable.
    """

    def __init__(self, limit: float, on: Literal["share", "ratio"] = "share") -> None:
        if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not 0 < limit < 1:
            raise InterpError(f"`budget` expects a number between 0 and 1, both excluded, got {limit!r}.")
        check_measure(on)
        self.limit = float(limit)
        self.on = on
        self.frozen = False
        self._integral = self._error = 0.0
        self._last: Reading | None = None
        self._first: Reading | None = None
        self.multiplier = 1.0

    def start(self, now: Reading) -> None:
        """Take in how it stands before the penalty acts: what the concepts' floor is half of."""
        self._first = now

    def update(self, now: Reading) -> None:
        """Take in a measurement of what the multiplier did; one that was withheld changes nothing."""
        measured = getattr(now, self.on)
        if measured is None or not math.isfinite(measured):
            return
        if self._first is None or self._first.concepts is None:
            self._first = now
        self._last = now
        floor = FLOOR * (self._first.concepts or 0.0)
        self.frozen = now.concepts is not None and now.concepts < floor
        error = max(-1.0, min(1.0, math.log(max(measured, 1e-12) / (AIM * self.limit))))
        change, self._error = error - self._error, error
        if self.frozen and error > 0:
            return
        self._integral = max(math.log(LOWEST), min(math.log(HIGHEST), self._integral + GAIN * error))
        moved = max(LOWEST, min(HIGHEST, math.exp(self._integral + BRAKE * change)))
        self.multiplier = min(moved, self.multiplier) if self.frozen else moved

    @property
    def held(self) -> bool | None:
        """Whether the last measurement was within the budget; None before the first."""
        return None if self._last is None else getattr(self._last, self.on) <= self.limit

    def report(self, confounder: str) -> str | None:
        """Why the budget cannot be held, with the numbers; None while nothing stands against it."""
        if self._last is None or self._first is None or self.held or not (self.frozen or self._integral >= math.log(HIGHEST)):
            return None
        reached = getattr(self._last, self.on)
        why = "the concepts' share has fallen below half of its start" if self.frozen else "the multiplier is at its end"
        concepts = "" if self._last.concepts is None else (
            f" The concepts' share went from {self._first.concepts:.3f} to {self._last.concepts:.3f}."
        )  # fmt: skip
        return (
            f"the budget cannot be held: {self.on} of '{confounder}' is {reached:.3f}, budget {self.limit:g}, "
            f"multiplier {self.multiplier:.3g}; {why}.{concepts}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "multiplier": self.multiplier,
            "integral": self._integral,
            "error": self._error,
            "frozen": self.frozen,
            "first": None if self._first is None else list(self._first),
            "last": None if self._last is None else list(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.multiplier, self.frozen = state["multiplier"], state["frozen"]
        self._integral, self._error = state["integral"], state["error"]
        self._first = None if state["first"] is None else Reading(*state["first"])
        self._last = None if state["last"] is None else Reading(*state["last"])
