"""What the routes answer: figures of `report/` made from logged events, and what the page says beside them."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from lightning_interp import report
from lightning_interp.errors import InterpError
from lightning_interp.events import HIDDEN_FACTOR
from lightning_interp.plugin.logged import FEATURES, Log, LoggedEvents, Moment, Series, Where, layer_of, number, rows
from lightning_interp.report.heatmap import TITLES
from lightning_interp.report.theme import THEMES, template
from lightning_interp.report.verdict import verdict
from lightning_interp.summaries.event_log import event_tag, features_tag

LATEST = 2**53 - 1  # the step that stands for the newest event: the largest whole number that JavaScript has
DRAWN = 400  # events in the figures over time, of all runs together
SPREAD = 12  # further events that a heat map looks at, so that its colours mean the same at every step
PAGE = 500  # records of one answer
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


_log = logging.getLogger(__name__)


class Views:
    """Answers as plain dicts.

    Args:
        logged: what is read.
    """

    def __init__(self, logged: LoggedEvents) -> None:
        self._logged = logged

    def runs(self, where: Where) -> dict[str, Any]:
        """What there is to choose from; of every series its last step and when it was written."""
        listed = []
        for series, tags in sorted(self._logged.index(where).items()):
            events = tags.get(event_tag(series.prefix))
            newest = max((info.max_wall_time for info in tags.values() if info.max_wall_time is not None), default=None)
            layers = sorted(layer for tag in tags if (layer := layer_of(tag)) is not None)
            listed.append(
                {"id": list(series), "label": series.label, "step": None if events is None else events.max_step,
                 "time": newest, "layers": layers}
            )  # fmt: skip
        return {
            "series": listed,
            "plotly": find_spec("plotly") is not None,
            "templates": {theme: template(theme) for theme in THEMES},
            "caveat": HIDDEN_FACTOR,
        }

    def history(self, where: Where, chosen: Sequence[Series]) -> dict[str, Any]:
        """Figures over time of the chosen series side by side, and the steps at which there are events."""
        logs = {s: self._logged.log(where, s, event_tag(s.prefix)) for s in chosen}
        scalars = {s: self._logged.penalties(where, s.run) for s in chosen}
        confounders = {s: self._confounders(where, s, log) for s, log in logs.items()}
        share = max(20, DRAWN // max(1, len(chosen)))
        drawn = {label: _over_time(logs[s], share, scalars[s], confounders[s]) for label, s in zip(_labels(chosen), chosen)}
        some = {label: run for label, run in drawn.items() if run.records}
        told = {label: run for label, run in drawn.items() if run.scalars or run.alarms}
        return {
            "series": [
                {"id": list(s), "label": label, "drawn": len(run.steps()), **_said(logs[s])}
                for (label, run), s in zip(drawn.items(), chosen)
            ],
            "measures": _layer_measures(logs.values()),
            "figures": {
                "contributions": _figure(lambda: report.contributions(some)),
                "effects": _figure(lambda: report.effects(some)),
                "groups": _figure(lambda: report.groups(some)),
                "penalties": _figure(lambda: report.penalties(told)),
            },
        }

    def event(self, where: Where, chosen: Sequence[Series], step: int, measure: str) -> dict[str, Any]:
        """The last event of every chosen series not after a step."""
        found: dict[str, report.Run] = {}
        spread: dict[str, report.Run] = {}
        answers: list[dict[str, Any]] = []
        index = self._logged.index(where)
        for label, series in zip(_labels(chosen), chosen):
            log = self._upto(where, series, event_tag(series.prefix), step)
            moment = log.at(step)
            if moment is None:
                answers.append({"id": list(series), "label": label, "step": None})
                continue
            content = moment.content()
            confounders = self._confounders(where, series, log)
            found[label] = _run([moment], moment, confounders)
            unnamed, _ = self._discovered(where, series, index.get(series, ()), step)
            spread[label] = _run(_spread(log, moment), moment, confounders, measure)
            answers.append(
                {"id": list(series), "label": label, "step": moment.step, "epoch": moment.epoch,
                 "equation": str(content.get("equation", "")), "notes": _texts(content.get("notes")),
                 "alarms": list(moment.alarms), "verdict": verdict(replace(found[label], features=unnamed), confounders)}
            )  # fmt: skip
        return {
            "series": answers,
            "figures": {
                "equation": _figure(lambda: report.equation(found)),
                "heatmap": _figure(lambda: report.heatmap(spread, measure, step)),
            },
        }

    def records(self, where: Where, series: Series, step: int, offset: int) -> dict[str, Any]:
        """A page of the records of one event."""
        moment = self._logged.log(where, series, event_tag(series.prefix)).at(step)
        if moment is None:
            return {"step": None, "total": 0, "records": []}
        found = rows(moment.content()["records"], moment.step, moment.epoch)
        return {"step": moment.step, "total": len(found), "records": found[offset : offset + PAGE]}

    def features(self, where: Where, chosen: Sequence[Series], step: int) -> dict[str, Any]:
        """What was discovered in every chosen series by a step, layer by layer, with the strongest samples."""
        found: dict[str, report.Run] = {}
        answers, problems = [], []
        index = self._logged.index(where)
        for label, series in zip(_labels(chosen), chosen):
            events, said = self._discovered(where, series, index.get(series, ()), step)
            problems += [f"{label}, {problem}" for problem in said]
            if events:
                found[label] = report.Run((), features=events)
                answers += [{"label": label, **event} for event in events]
        return {
            "series": answers,
            "problems": problems,
            "figures": {"features": _figure(lambda: report.features(found)) if found else None},
        }

    def _upto(self, where: Where, series: Series, tag: str, step: int, most: int | None = None) -> Log:
        """A log that holds the last event not after a step; of the newest no more than that need be read."""
        if step >= LATEST:
            return self._logged.glimpse(where, series, tag, most)
        return self._logged.log(where, series, tag, most)

    def _discovered(
        self, where: Where, series: Series, tags: Iterable[str], step: int
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """What was discovered by a step, layer by layer, and what could not be read."""
        events, problems = [], []
        for layer in filter(None, map(layer_of, tags)):
            log = self._upto(where, series, features_tag(layer, series.prefix), step, FEATURES)
            problems += [f"{layer}: {problem}" for problem in log.problems]
            moment = log.at(step)
            if moment is not None:
                events.append(_discovered(moment, layer))
        return events, problems

    def _confounders(self, where: Where, series: Series, log: Log) -> list[str]:
        """As declared; from the penalties where an older log does not say."""
        if log.moments and log.moments[-1].confounders:
            return list(log.moments[-1].confounders)
        return list(report.Run.from_payloads((), scalars=self._logged.penalties(where, series.run)).confounders)


def _labels(chosen: Sequence[Series]) -> list[str]:
    """Names for the panels, different even where run and prefix look alike."""
    labels = [s.label for s in chosen]
    return [label if labels.count(label) == 1 else f"{label} [{i + 1}]" for i, label in enumerate(labels)]


def _said(log: Log) -> dict[str, Any]:
    return {
        "steps": [m.step for m in log.moments],
        "epochs": [m.epoch for m in log.moments],
        "held": log.held,
        "written": log.written,
        "problems": list(log.problems),
        "alarms": [[m.step, alarm] for m in log.moments for alarm in m.alarms],
    }


def _figure(draw: Callable[[], report.Figure]) -> dict[str, Any]:
    """{"data", "layout"}; {"reason"} where there is nothing to draw."""
    try:
        figure = draw()
    except InterpError as problem:
        return {"reason": str(problem)}
    except Exception as problem:  # records of another program: the other figures are shown
        _log.exception("a figure could not be drawn")
        return {"reason": f"This could not be drawn: {type(problem).__name__}: {problem}"}
    return {"data": figure.data, "layout": figure.layout}


def _over_time(log: Log, most: int, scalars: Mapping[str, Any], confounders: Sequence[str]) -> report.Run:
    moments = _evenly(log.moments, most)
    return report.Run(
        [r for m in moments for r in m.records],
        alarms={m.step: m.alarms for m in log.moments if m.alarms},
        confounders=confounders,
        scalars=scalars,
    )


def _run(moments: Sequence[Moment], now: Moment, confounders: Sequence[str], measure: str = "") -> report.Run:
    """All records of a moment, and of the others those of a measure."""
    contents = [(m, m.content()) for m in moments]
    return report.Run(
        [r for m, c in contents for r in rows(c["records"], m.step, m.epoch, None if m is now else (measure,))],
        equations={m.step: str(c.get("equation", "")) for m, c in contents},
        confounders=confounders,
    )


def _spread(log: Log, moment: Moment) -> list[Moment]:
    return sorted({m.step: m for m in (*_evenly(log.moments, SPREAD), moment)}.values(), key=lambda m: m.step)


def _evenly(moments: Sequence[Moment], most: int) -> Sequence[Moment]:
    """About so many, evenly spread over the steps, with the first, the last, and every alarm."""
    if len(moments) <= most:
        return moments
    steps = [m.step for m in moments]
    first, width = steps[0], (steps[-1] - steps[0]) / (most - 1)
    kept = {min(bisect_left(steps, first + i * width), len(steps) - 1) for i in range(most)}
    return [m for i, m in enumerate(moments) if i in kept or m.alarms]


def _layer_measures(logs: Any) -> list[list[str]]:
    """[measure, title] pairs that the last events hold at layers."""
    held: dict[str, None] = {}
    for log in logs:
        for moment in log.moments[-1:]:
            held |= dict.fromkeys(str(r.get("measure")) for r in moment.content()["records"] if r.get("layer") is not None)
    return [[measure, title] for measure, title in TITLES.items() if measure in held]


def _texts(value: object) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []


def _discovered(moment: Moment, layer: str) -> dict[str, Any]:
    content = moment.content()
    found = [_feature(f) for f in content["features"]]
    share = {k: number(content.get(k)) for k in ("unexplained", "unnamed")}
    return {"step": moment.step, "epoch": moment.epoch, "layer": layer, **share, "features": found}


def _feature(plain: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {k: number(plain.get(k)) for k in ("contribution", "causal", "stability", "suspicion", "flip", "early", "target")}
    groups = plain.get("groups")
    promoted = plain.get("promoted")
    return {
        "name": str(plain.get("name", "feature")),
        "promoted": None if promoted is None else str(promoted),
        **numbers,
        "groups": {str(k): number(v) for k, v in groups.items()} if isinstance(groups, Mapping) else {},
        "strongest": _samples(plain.get("strongest")),
        "weakest": _samples(plain.get("weakest")),
    }


def _samples(plain: object) -> dict[str, Any] | None:
    if not isinstance(plain, Mapping):
        return None
    kind = plain.get("kind")
    if kind == "image" and isinstance(plain.get("png"), str) and BASE64.fullmatch(plain["png"]):
        return {"kind": "image", "png": plain["png"], "count": number(plain.get("count"))}
    if kind == "text":
        return {"kind": "text", "texts": _texts(plain.get("texts"))}
    if kind == "rows" and isinstance(plain.get("rows"), list):
        body = [[number(v) for v in row] for row in plain["rows"] if isinstance(row, list)]
        return {"kind": "rows", "columns": _texts(plain.get("columns")), "rows": body}
    return None
