"""Logged events as TensorBoard's data provider gives them: parsed once, sampled, not trusted."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensorboard.data.provider import DataProvider, RunTagFilter

from lightning_interp.events import Record
from lightning_interp.summaries.event_log import EVENT_TAG, FEATURES_TAG, PLUGIN_NAME, EventLogError, read_json

KEPT = 32  # parsed logs kept in memory, the last used ones
POINTS = 300  # of a scalar
FEATURES = 30  # events of DiscoverFeatures: they hold pictures
OVER_TIME = frozenset({"contribution", "effect", "intervention", "group"})  # measures whose records are kept for every event
PENALTIES = frozenset({"penalty", "penalty_weight", "penalty_scale"})


class Series(NamedTuple):
    """One monitor in one run."""

    run: str
    prefix: str

    @property
    def label(self) -> str:
        """The run's name, with the monitor's prefix where it has one."""
        return f"{self.run} ({self.prefix})" if self.prefix else self.run


@dataclass(frozen=True)
class Moment:
    """One event as logged.

    Attributes:
        step: optimizer steps done.
        epoch: zero-based, None where unknown.
        number: of the event in its run, from 1, also where others are not in the sample.
        wall_time: seconds, when it was written.
        text: all of it, as JSON.
        records: those of `OVER_TIME`.
        alarms: warnings given at it.
        confounders: variables that should not matter.
    """

    step: int
    epoch: int | None
    number: int
    wall_time: float
    text: bytes
    records: tuple[Record, ...]
    alarms: tuple[str, ...]
    confounders: tuple[str, ...]

    def content(self) -> dict[str, Any]:
        """All of the event, see `event_log.event_content`."""
        return read_json(self.text)


@dataclass(frozen=True)
class Log:
    """The events of a series that TensorBoard holds.

    Attributes:
        moments: by step; of several at one step the last written.
        held: how many TensorBoard holds, with those that cannot be read.
        written: how many were written, as far as those that are held can tell.
        problems: what could not be read, and why; each once.
    """

    moments: tuple[Moment, ...]
    held: int
    written: int
    problems: tuple[str, ...]

    def at(self, step: int) -> Moment | None:
        """The last event at or before a step."""
        return max((m for m in self.moments if m.step <= step), key=lambda m: m.step, default=None)


class Where(NamedTuple):
    """Whose data: TensorBoard's request context and experiment."""

    ctx: Any
    experiment: str


class LoggedEvents:
    """Reads logged events through a data provider, and keeps what was parsed until there is more.

    Args:
        provider: TensorBoard's.
        samples: events of a series to ask for.
    """

    def __init__(self, provider: DataProvider, samples: int) -> None:
        self._provider = provider
        self._samples = samples
        self._kept: OrderedDict[tuple[str, str, str], tuple[object, Log]] = OrderedDict()
        self._reading = threading.Lock()  # two requests for one log: the second finds it parsed

    def index(self, where: Where) -> dict[Series, dict[str, Any]]:
        """{series: {tag: its last step and wall time}}; tags are those of events and of features, in the provider's order."""
        found = self._provider.list_tensors(where.ctx, experiment_id=where.experiment, plugin_name=PLUGIN_NAME)
        out: dict[Series, dict[str, Any]] = {}
        for run, tags in found.items():
            for tag, info in tags.items():
                prefix = _prefix(tag)
                if prefix is not None:
                    out.setdefault(Series(run, prefix), {})[tag] = info
        return out

    def log(self, where: Where, series: Series, tag: str, most: int | None = None) -> Log:
        """The log under a tag of a series, or a sample of it; empty where there is none."""
        with self._reading:
            only = RunTagFilter(runs=[series.run], tags=[tag])
            asked = {"experiment_id": where.experiment, "plugin_name": PLUGIN_NAME, "run_tag_filter": only}
            info = self._provider.list_tensors(where.ctx, **asked).get(series.run, {}).get(tag)
            if info is None:
                return Log((), 0, 0, ())
            key, state = (where.experiment, series.run, tag), (info.max_step, info.max_wall_time)
            before = self._kept.pop(key, None)
            if before is None or before[0] != state:
                read = self._provider.read_tensors(where.ctx, downsample=min(self._samples, most or self._samples), **asked)
                data = read.get(series.run, {}).get(tag, [])
                before = (state, _log(data, () if before is None else before[1].moments))
            self._kept[key] = before
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return before[1]

    def glimpse(self, where: Where, series: Series, tag: str, most: int | None = None) -> Log:
        """The log where it is parsed already, else what was written last alone: what can be shown at once."""
        if (where.experiment, series.run, tag) in self._kept:
            return self.log(where, series, tag, most)
        only = RunTagFilter(runs=[series.run], tags=[tag])
        asked = {"experiment_id": where.experiment, "plugin_name": PLUGIN_NAME, "run_tag_filter": only}
        return _log(self._provider.read_tensors(where.ctx, downsample=1, **asked).get(series.run, {}).get(tag, []), ())

    def penalties(self, where: Where, run: str) -> dict[str, list[tuple[int, Any]]]:
        """{tag: (step, value) pairs} of the scalars of penalties in a run; None where a value is not finite."""
        asked = {"experiment_id": where.experiment, "plugin_name": "scalars"}
        listed = self._provider.list_scalars(where.ctx, run_tag_filter=RunTagFilter(runs=[run]), **asked).get(run, {})
        tags = [tag for tag in listed if not PENALTIES.isdisjoint(tag.split("/")[:-1])]
        if not tags:
            return {}
        only = RunTagFilter(runs=[run], tags=tags)
        found = self._provider.read_scalars(where.ctx, downsample=POINTS, run_tag_filter=only, **asked).get(run, {})
        return {tag: [(point.step, number(point.value)) for point in found.get(tag, [])] for tag in tags}


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def rows(records: Iterable[Record], step: int, epoch: int | None, wanted: Collection[str] | None = None) -> list[Record]:
    """Records with every key there and of its type; of the measures wanted, or all."""
    return [_row(r, step, epoch) for r in records if wanted is None or str(r.get("measure")) in wanted]


def _row(record: Record, step: int, epoch: int | None) -> Record:
    texts = {k: None if record.get(k) is None else str(record[k]) for k in ("measure", "layer", "variable", "by", "note")}
    numbers = {k: number(record.get(k)) for k in ("value", "low", "high")}
    return {
        "step": step, "epoch": epoch, "measure": texts["measure"], "layer": texts["layer"], "variable": texts["variable"],
        "by": texts["by"], **numbers, "note": texts["note"],
    }  # fmt: skip


def _prefix(tag: str) -> str | None:
    """The prefix before a tag of ours, None if it is none of ours."""
    before, found, layer = f"/{tag}".partition(f"/{FEATURES_TAG}/")
    if found and layer:
        return before.removeprefix("/")
    return f"/{tag}".removesuffix(f"/{EVENT_TAG}").removeprefix("/") if f"/{tag}".endswith(f"/{EVENT_TAG}") else None


def layer_of(tag: str) -> str | None:
    """The layer in a tag of features, None in that of events."""
    _, found, layer = f"/{tag}".partition(f"/{FEATURES_TAG}/")
    return layer if found and layer else None


def _log(data: Sequence[Any], before: Iterable[Moment]) -> Log:
    known = {(m.wall_time, m.text): m for m in before}
    data = sorted(data, key=lambda datum: datum.wall_time)
    found = [_read(datum, known) for datum in data]
    moments = [one for one in found if isinstance(one, Moment)]
    problems: dict[str, int] = {}
    for one, datum in zip(found, data):
        if isinstance(one, str):
            problems.setdefault(one, datum.step)
    by_step = {m.step: m for m in moments}
    return Log(
        tuple(sorted(by_step.values(), key=lambda m: m.step)),
        len(data),
        max(_written(moments), len(data)),
        tuple(f"step {step}: {problem}" for problem, step in problems.items()),
    )


def _read(datum: Any, known: dict[tuple[float, bytes], Moment]) -> Moment | str:
    """A moment, or why there is none."""
    try:
        text = _text(datum.numpy)
        return known.get((datum.wall_time, text)) or _moment(text, datum.wall_time)
    except EventLogError as problem:
        return str(problem)


def _text(tensor: Any) -> bytes:
    if tensor.size != 1:
        raise EventLogError(f"expected one text, but got a tensor of {tensor.size}")
    text = tensor.item()
    if not isinstance(text, (bytes, str)):
        raise EventLogError(f"expected a text, but got {type(text).__name__}")
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


def _moment(text: bytes, wall_time: float) -> Moment:
    content = read_json(text)
    step, epoch = content["step"], content["epoch"]
    count = content.get("number")
    kept = tuple(rows(content.get("records", ()), step, epoch, OVER_TIME))
    said = (_texts(content.get(key)) for key in ("alarms", "confounders"))
    return Moment(step, epoch, count if isinstance(count, int) else 0, wall_time, text, kept, *said)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _written(moments: Sequence[Moment]) -> int:
    """Each writer counts from 1: a run that was resumed in its directory has several counts, one after the other."""
    total, last = 0, 0
    for moment in moments:
        if moment.number <= last:
            total += last
        last = moment.number
    return total + last
