"""An `Event`: one measurement of everything, at one training step, in plain types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lightning_interp.events.fields import EventFields
from lightning_interp.events.html import event_html
from lightning_interp.events.records import Record, event_records
from lightning_interp.events.text import event_lines
from lightning_interp.results import ByLevel, Effect, Entanglement, Groups, Mediation, Score, Sensitivity, Share


@dataclass(frozen=True)
class Event(EventFields):
    """One measurement of everything: `print` shows the equation, and a notebook typesets it. Its fields are `EventFields`."""

    def records(self) -> list[Record]:
        """The event as tidy rows, see `to_records`."""
        return list(event_records(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, fit for a checkpoint or JSON."""
        plain = asdict(self)
        plain["notes"], plain["confounders"] = list(self.notes), list(self.confounders)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Event:
        """The event that `to_dict` wrote; fields that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        d = {k: v for k, v in plain.items() if k in known}
        d["contribution"] = {k: Share(**v) for k, v in d["contribution"].items()}
        for name in ("effect", "intervention"):
            d[name] = {k: _effect(v) for k, v in d[name].items()}
        d["decodability"] = {layer: {k: Score(**s) for k, s in scores.items()} for layer, scores in d["decodability"].items()}
        d["sensitivity"] = {
            layer: {k: {by: Sensitivity(**s) for by, s in rows.items()} for k, rows in variables.items()}
            for layer, variables in d["sensitivity"].items()
        }
        d["mediation"] = {  # not in checkpoints of the first version
            layer: {k: Mediation(**m) for k, m in erased.items()} for layer, erased in d.get("mediation", {}).items()
        }
        d["entanglement"] = {layer: Entanglement(**e) for layer, e in d.get("entanglement", {}).items()}
        d["groups"] = None if d["groups"] is None else Groups(**d["groups"])
        d["notes"], d["confounders"] = tuple(d["notes"]), tuple(d.get("confounders", ()))
        return cls(**d)

    def scalars(self) -> dict[str, float]:
        """{logged key: value} of everything that could be measured; never NaN."""
        out: dict[str, float] = {}
        for r in self.records():
            parts = ("measure", "layer", *(["by"] if r["measure"] == "mediation" else []), "variable")
            key = "/".join(str(r[k]) for k in parts if r[k] is not None)
            if r["measure"] == "group" and r["by"] is not None:
                key = f"{key}/{r['by']}"
            elif r["measure"] != "mediation" and r["by"] is not None:
                continue
            if r["value"] is not None and math.isfinite(r["value"]):
                out[key] = float(r["value"])
        return out

    def __str__(self) -> str:
        return "\n".join(event_lines(self))

    def _repr_html_(self) -> str:
        return event_html(self)


def to_records(history: Iterable[Event]) -> list[Record]:
    """Events as a tidy list of dicts, one per number.

    Args:
        history: events, such as `monitor.history`.

    Returns:
        Rows with `step, epoch, measure, layer, variable, by, value, low, high, note`. `measure`, `layer` and `variable` are the
        parts of the logged key, `by` is the class, level, cell, or the erased or other variable; a value that could not be
        measured is None, with a note.
    """
    return [record for event in history for record in event.records()]


def _effect(plain: Mapping[str, Any]) -> ByLevel:
    if "value" in plain and not isinstance(plain["value"], Mapping):
        return Effect(**plain)
    return {by: Effect(**e) for by, e in plain.items()}
