"""The certificate of a suppressed run or an edit: what was done, and what was measured, for whoever asks later."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_interp import __version__
from lightning_interp.events import HIDDEN_FACTOR, Event

__all__ = ["certificate", "write_certificate"]

FORMAT = 1


def certificate(
    kind: str,
    confounder: str,
    concepts: Sequence[str],
    settings: Mapping[str, Any],
    before: Event | None,
    after: Event | None,
    notes: Sequence[str] = (),
    erasure: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build one.

    Args:
        kind: what was done, such as "SuppressConfounder".
        confounder: the variable it was done to.
        concepts: names of the variables that should be left alone.
        settings: how, in plain types.
        before: the last event before it acted; None where none was measured.
        after: the last event after that; None where none was measured.
        notes: what the reader must know.
        erasure: of an erasure or an edit: its directions, what a linear probe still reads, and more; see `edit`.

    Returns:
        Plain types, the same for the same run: `format`, `version` (of the library), `kind`, `confounder`, `concepts`,
        `settings`, `measured_on` (with `probe`, the hash of the samples), `before` and `after` (events with shares, effects and
        their intervals, decodability, groups, see `Event.to_dict`), `change` (`[before, after]` of share and effect of the
        confounder and of each concept, of worst and mean group accuracy), `erasure`, `notes` (also: what is missing).
    """
    said = list(notes)
    measured = after or before
    if measured is None:
        said.append("nothing was measured: no ConceptMonitor gave an event with the confounder's contribution")
    elif after is None:
        said.append("nothing was measured after it acted")
    elif before is None:
        said.append("nothing was measured before it acted")
    elif before.probe is None or before.probe != after.probe:
        said.append("before and after were measured on different samples, as far as is known")
    if measured is not None:
        if not measured.decodability and erasure is None:
            said.append("whether a layer still holds the confounder was not measured")
        said.append(HIDDEN_FACTOR)
        said += [note for note in measured.notes if note not in said]
    whole = {
        "format": FORMAT,
        "version": __version__,
        "kind": kind,
        "confounder": confounder,
        "concepts": list(concepts),
        "settings": dict(settings),
        "measured_on": None if measured is None else _where(measured),
        "before": None if before is None else _plain(before),
        "after": None if after is None else _plain(after),
        "change": None if before is None or after is None else change(before, after, [confounder, *concepts]),
        "erasure": None if erasure is None else dict(erasure),
        "notes": said,
    }
    return {key: _finite(part) for key, part in whole.items()}


def _where(event: Event) -> dict[str, Any]:
    return {"mode": event.mode, "n": event.n, "weights": event.weights, "probe": event.probe}


def _plain(event: Event) -> dict[str, Any]:
    # Without the time it took: the same run gives the same certificate.
    return {key: part for key, part in event.to_dict().items() if key != "cost_seconds"}


def _finite(x: Any) -> Any:
    # JSON knows no NaN and no infinity.
    if isinstance(x, Mapping):
        return {key: _finite(part) for key, part in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(part) for part in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def change(before: Event, after: Event, names: Sequence[str]) -> dict[str, Any]:
    """Before and after, as pairs: share and effect of each variable, accuracy of the worst group and mean over groups."""
    out: dict[str, Any] = {}
    for name in names:
        shares = [e.contribution[name].debiased if name in e.contribution else None for e in (before, after)]
        out[name] = {"share": shares, "effect": [e.magnitude.get(name) for e in (before, after)]}
    out["worst_group"] = [e.groups.worst_accuracy if e.groups else None for e in (before, after)]
    out["mean_group_accuracy"] = [
        sum(e.groups.accuracy.values()) / len(e.groups.accuracy) if e.groups else None for e in (before, after)
    ]
    return out


def write_certificate(path: Path, entry: Mapping[str, Any]) -> None:
    """Write a certificate to a JSON file that holds a list of them; one of the same kind, confounder and penalty is replaced.

    Args:
        path: the file.
        entry: as `certificate` builds it.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [c for c in kept if _subject(c) != _subject(entry)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([*kept, entry], indent=2, ensure_ascii=False, allow_nan=False)
    part = path.with_name(f"{path.name}.part")  # never half a file
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _subject(entry: Mapping[str, Any]) -> list[Any]:
    return [entry["kind"], entry["confounder"], entry["settings"].get("penalty")]
