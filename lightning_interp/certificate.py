"""The certificate of a suppressed run or an edit: what was done, and what was measured, for whoever asks later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_interp.events import HIDDEN_FACTOR, Event

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
        after: the last event of the run.
        notes: what the reader must know.
        erasure: of an edit: where it acts, its directions, what a linear probe still reads, a random control; see `edit`.

    Returns:
        Plain types: `format`, `kind`, `confounder`, `concepts`, `settings`, `measured_on`, `before` and `after` (events, see
        `Event.to_dict`), `change` (of the confounder, of each concept: share and effect; of worst group and mean accuracy),
        `erasure`, `notes`.
    """
    said = list(notes)
    if after is None:
        said.append("nothing was measured: the run had no ConceptMonitor with these variables")
    elif before is None or (before.step == after.step and erasure is None):
        said.append("nothing was measured before it acted")
        before = None
    elif before.probe != after.probe:
        said.append("before and after were measured on different samples")
    if after is not None:
        said.append(HIDDEN_FACTOR)
        said += [note for note in after.notes if note not in said]
    return {
        "format": FORMAT,
        "kind": kind,
        "confounder": confounder,
        "concepts": list(concepts),
        "settings": dict(settings),
        "measured_on": None if after is None else _where(after),
        "before": None if before is None else before.to_dict(),
        "after": None if after is None else after.to_dict(),
        "change": None if before is None or after is None else change(before, after, [confounder, *concepts]),
        "erasure": None if erasure is None else dict(erasure),
        "notes": said,
    }


def _where(event: Event) -> dict[str, Any]:
    return {"mode": event.mode, "n": event.n, "weights": event.weights, "probe": event.probe}


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
    """Write a certificate to a JSON file that holds a list of them; one of the same kind and confounder is replaced.

    Args:
        path: the file.
        entry: as `certificate` builds it.
    """
    kept = json.loads(path.read_text()) if path.exists() else []
    same = ("kind", "confounder")
    kept = [c for c in kept if any(c[k] != entry[k] for k in same)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, entry], indent=2, ensure_ascii=False) + "\n")
