"""What one run has to show: its records, and what was said and logged beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Union

from lightning_interp.errors import InterpError, nearest
from lightning_interp.events import Event, Record

Series = Sequence[tuple[int, float]]
KEYS = ("step", "epoch", "measure", "layer", "variable", "by", "value", "low", "high", "note")
OWN = ("interactions", "unexplained")  # shares that are no variable's


@dataclass(frozen=True)
class Run:
    """One run, or one monitor of it.

    Attributes:
        records: tidy rows, see `to_records`, in the order of their steps.
        equations: {step: the event as text}.
        notes: {step: what was withheld or decided, and why}.
        alarms: {step: warnings}.
        confounders: variables that should not matter; empty where that is not known.
        scalars: {tag: (step, value) pairs} of the penalties.
        features: events of `DiscoverFeatures`, as they were logged.
    """

    records: Sequence[Record]
    equations: Mapping[int, str] = field(default_factory=dict)
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)
    alarms: Mapping[int, Sequence[str]] = field(default_factory=dict)
    confounders: Sequence[str] = ()
    scalars: Mapping[str, Series] = field(default_factory=dict)
    features: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def from_payloads(
        cls,
        payloads: Iterable[Mapping[str, Any]],
        features: Iterable[Mapping[str, Any]] = (),
        scalars: Mapping[str, Series] | None = None,
    ) -> Run:
        """A run from what its log holds.

        Args:
            payloads: the events' JSON, as logged under `interp/event`, in the order of writing. Where a step comes twice, as
                after a resume, the later one counts.
            features: the JSON logged under `interp/features/{layer}`.
            scalars: {tag: (step, value) pairs} of the penalties.
        """
        events = [dict(p) for _, p in sorted({int(p["step"]): p for p in payloads}.items())]
        found = [dict(f) for _, f in sorted({(int(f["step"]), str(f["layer"])): f for f in features}.items())]
        scalars = scalars or {}
        return cls(
            records=[
                {key: r.get(key, p[key] if key in ("step", "epoch") else None) for key in KEYS}
                for p in events
                for r in p["records"]
            ],
            equations={p["step"]: p.get("equation", "") for p in events},
            notes={p["step"]: p.get("notes", ()) for p in events},
            alarms={p["step"]: p["alarms"] for p in events if p.get("alarms")},
            confounders=list(dict.fromkeys([*(c for p in events for c in p.get("confounders", ())), *_penalised(scalars)])),
            scalars=scalars,
            features=found,
        )

    @classmethod
    def of(cls, source: Source) -> Run:
        """A run from events, from records, or from a run.

        Raises:
            InterpError: it is something else.
        """
        if isinstance(source, Run):
            return source
        items = list(source)
        if all(isinstance(item, Event) for item in items):
            return cls._of_events([item for item in items if isinstance(item, Event)])
        if all(isinstance(item, Mapping) and {"step", "measure", "value"} <= set(item) for item in items):
            return cls([dict(item) for item in items if isinstance(item, Mapping)])
        kinds = sorted({type(item).__name__ for item in items})
        raise InterpError(f"expected Events or the records of `to_records`, got {', '.join(kinds)}.")

    @classmethod
    def _of_events(cls, events: Sequence[Event]) -> Run:
        return cls(
            records=[r for e in events for r in e.records()],
            equations={e.step: str(e) for e in events},
            notes={e.step: e.notes for e in events},
            confounders=list(dict.fromkeys(name for e in events for name in e.confounders)),
        )

    @cached_property
    def _by_measure(self) -> dict[str, list[Record]]:
        out: dict[str, list[Record]] = {}
        for record in self.records:
            out.setdefault(record["measure"], []).append(record)
        return out

    @property
    def measures(self) -> list[str]:
        """What was measured."""
        return list(self._by_measure)

    def rows(self, measure: str) -> list[Record]:
        """All records of a measure."""
        return self._by_measure.get(measure, [])

    def line(self, measure: str, variable: str | None, by: str | None = None) -> list[Record]:
        """One variable's records over the steps."""
        return self._lines.get((measure, variable, by), [])

    @cached_property
    def _lines(self) -> dict[tuple[str, str | None, str | None], list[Record]]:
        out: dict[tuple[str, str | None, str | None], list[Record]] = {}
        for r in self.records:
            if r["layer"] is None:
                out.setdefault((r["measure"], r["variable"], r["by"]), []).append(r)
        return out

    def steps(self, measure: str | None = None) -> list[int]:
        """Steps with an event, or with records of a measure."""
        return self._steps.get(measure, [])

    @cached_property
    def _steps(self) -> dict[str | None, list[int]]:
        found: dict[str | None, dict[int, None]] = {None: {}}
        for record in self.records:
            for measure in (None, record["measure"]):
                found.setdefault(measure, {})[record["step"]] = None
        return {measure: sorted(steps) for measure, steps in found.items()}

    def step(self, measure: str, at: int | None = None) -> int | None:
        """The last step not after `at` with records of a measure; None if there is none."""
        return max((s for s in self.steps(measure) if at is None or s <= at), default=None)

    @cached_property
    def variables(self) -> list[str]:
        """Names in the order of their appearance."""
        measures = ("contribution", "effect", "decodability", "sensitivity", "mediation", "intervention")
        found = (r["variable"] for m in measures for r in self.rows(m))
        return list(dict.fromkeys(name for name in found if name is not None and name not in OWN))


Source = Union[Run, Iterable[Event], Iterable[Record]]  # noqa: UP007 - `|` does not take what is defined above as a string
Sources = Union[Source, Mapping[str, Source]]  # noqa: UP007


def runs(sources: Sources) -> dict[str, Run]:
    """{run: Run}; one run without a name is called "".

    Args:
        sources: events, records or a `Run`, or {run: one of these}.

    Raises:
        InterpError: it is something else, or empty.
    """
    found = {str(k): Run.of(v) for k, v in sources.items()} if isinstance(sources, Mapping) else {"": Run.of(sources)}
    if not found:
        raise InterpError("no runs were given.")
    return found


def finite(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def require(found: Mapping[str, Run], measure: str) -> None:
    """Say so where no run has a measure.

    Raises:
        InterpError: it names what was measured.
    """
    if any(run.rows(measure) for run in found.values()):
        return
    known = dict.fromkeys(m for run in found.values() for m in run.measures)
    if not known:
        raise InterpError("there is no event yet: nothing was measured.")
    raise InterpError(f"nothing of '{measure}' was measured: add it to `measures`.{nearest(measure, known)}")


def _penalised(scalars: Mapping[str, Series]) -> list[str]:
    """Confounders, from the tags of their penalties."""
    out = []
    for tag in scalars:
        parts = tag.split("/")
        if "penalty" in parts[:-1]:
            out.append(parts[parts.index("penalty") + 1])
    return out
