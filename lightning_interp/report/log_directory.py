"""What a TensorBoard log directory holds of ours, read from its event files alone: no torch, no training code."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_interp.errors import InterpError, InterpWarning
from lightning_interp.report.run import Run, finite
from lightning_interp.summaries.event_log import EVENT_TAG, FEATURES_TAG, PLUGIN_NAME, EventLogError, read_json

PENALTIES = ("penalty", "penalty_weight", "penalty_scale")
ADD = (
    "Add `interp.ConceptMonitor(...)` to the Trainer's `callbacks`, and `TensorBoardLogger(...)` as its `logger`; "
    "TensorBoard and this report then read the same files."
)


@dataclass
class _Found:
    """Of one directory, by prefix."""

    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    features: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)


def read_log_directory(path: str | os.PathLike[str]) -> dict[str, Run]:
    """{run: Run} of a log directory, with one `Run` for every monitor's prefix.

    A half-written last record, as a running or killed training leaves it, ends its file; what cannot be read is left out with
    one warning per file.

    Args:
        path: a directory with TensorBoard's event files, at any depth.

    Returns:
        Runs by the part of their path that tells them apart.

    Raises:
        InterpError: there is no such directory, it holds no event file, or none of ours; the message says what to add.
    """
    path = Path(path)
    if not path.is_dir():
        raise InterpError(f"`logdir={str(path)!r}` is {'a file' if path.exists() else 'not there'}: expected a directory.")
    logs = sorted(p for p in path.rglob("*tfevents*") if p.is_file())
    if not logs:
        raise InterpError(f"'{path}' holds no TensorBoard event file. {ADD}")
    found: dict[Path, _Found] = {}
    for log in logs:
        _read(log, found.setdefault(log.parent.relative_to(path), _Found()))
    found = {place: one for place, one in found.items() if one.events or one.features}
    if not found:
        raise InterpError(f"'{path}' holds {len(logs)} event file(s), but no events of lightning_interp. {ADD}")
    return {
        f"{name} ({prefix})" if prefix and name else prefix or name: run
        for name, one in zip(_names(list(found), path.resolve().name), found.values())
        for prefix, run in _runs(one)
    }


def _read(log: Path, found: _Found) -> None:
    problems: list[str] = []
    try:
        for tag, step, value in _values(log):
            problem = _keep(tag, step, value, found)
            if problem:
                problems.append(f"'{tag}' at step {step}: {problem}")
    except Exception as error:  # TensorBoard's reader raises what protobuf raises
        problems.append(str(error))
    if problems:
        more = f" ({len(problems)} in all)" if len(problems) > 1 else ""
        warnings.warn(f"{log}: left out what cannot be read: {problems[0]}{more}", InterpWarning, stacklevel=3)


def _values(log: Path) -> Iterator[tuple[str, int, Any]]:
    """(tag, step, summary value) of every event."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for event in LegacyEventFileLoader(str(log)).Load():
        for value in event.summary.value:
            yield value.tag, int(event.step), value


def _keep(tag: str, step: int, value: Any, found: _Found) -> str | None:
    """Take in what is ours; what is wrong with it, if anything."""
    try:
        _sort(tag, step, value, found)
    except EventLogError as problem:
        return str(problem)
    return None


def _sort(tag: str, step: int, value: Any, found: _Found) -> None:
    ours = value.metadata.plugin_data.plugin_name == PLUGIN_NAME
    before, of_features, layer = f"/{tag}".rpartition(f"/{FEATURES_TAG}/")
    if ours and of_features and layer:
        found.features.setdefault(before.removeprefix("/"), []).append(_text(value) | {"layer": layer})
    elif ours and f"/{tag}".endswith(f"/{EVENT_TAG}"):
        found.events.setdefault(tag.removesuffix(EVENT_TAG).removesuffix("/"), []).append(_text(value))
    elif any(part in PENALTIES for part in tag.split("/")[:-1]):
        number = value.simple_value if value.HasField("simple_value") else next(iter(value.tensor.float_val), math.nan)
        if finite(number):
            found.scalars.setdefault(tag, {})[step] = float(number)


def _text(value: Any) -> dict[str, Any]:
    texts = value.tensor.string_val
    if len(texts) != 1:
        raise EventLogError(f"expected one text, but got {len(texts)}")
    return read_json(texts[0])


def _runs(one: _Found) -> Iterator[tuple[str, Run]]:
    prefixes = sorted({*one.events, *one.features})
    for prefix in prefixes:
        scalars = {
            tag: sorted(pairs.items()) for tag, pairs in one.scalars.items() if _owner(tag, prefixes) == prefix
        }  # fmt: skip
        yield prefix, Run.from_payloads(one.events.get(prefix, ()), one.features.get(prefix, ()), scalars)


def _owner(tag: str, prefixes: Sequence[str]) -> str:
    """The prefix that a penalty was logged under; the first monitor's where no monitor has it."""
    return next((p for p in prefixes if p and tag.startswith(f"{p}/")), prefixes[0] if "" not in prefixes else "")


def _names(places: Iterable[Path], root: str) -> list[str]:
    """The parts of the paths that differ."""
    parts = [list(place.parts) for place in places]
    if len(parts) == 1:
        return ["/".join(parts[0]) or root]
    for end in (0, -1):
        while all(len(p) > 1 for p in parts) and len({p[end] for p in parts}) == 1:
            for p in parts:
                p.pop(end)
    return ["/".join(p) or root for p in parts]
