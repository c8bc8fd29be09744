"""What the penalties did over training, and what was said meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.errors import InterpError
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run, Series
from lightning_interp.report.series import once
from lightning_interp.report.theme import ALARM, DASHES, WARM
from lightning_interp.report.wording import escape, hover, number

PARTS = {"penalty": "penalty (loss units)", "penalty_weight": "its weight", "penalty_scale": "the cap's factor"}
Scalars = Mapping[str, Series]


def penalties(
    scalars: Scalars | Run | Mapping[str, Scalars | Run], events: Mapping[int, Sequence[str]] | None = None
) -> Figure:
    """The penalties' terms, weights and cap factors over steps, with alarms and events on the same axis.

    Args:
        scalars: {tag: (step, value) pairs} or a `Run`; or {run: one of these}, drawn side by side where they have a penalty.
            Tags are `{prefix/}penalty/{confounder}`, `penalty_weight/…` and `penalty_scale/…`; others are left out.
        events: {step: what happened}, drawn as vertical lines in every run, beside the alarms of a `Run`.

    Raises:
        InterpError: there is no penalty among the scalars.
    """
    found = {name: (_lines(one), {**_alarms(one), **(events or {})}) for name, one in _named(scalars).items()}
    found = {name: one for name, one in found.items() if one[0]}
    names = list(dict.fromkeys(key for lines, _ in found.values() for _, key in lines))
    if not names:
        raise InterpError("there is no penalty among the scalars: none was logged. SuppressConfounder logs 'penalty/…'.")
    present = [part for part in PARTS if any(p == part for lines, _ in found.values() for p, _ in lines)]
    titles = [escape(name) if part == present[0] else "" for part in present for name in found]
    panels = Panels(titles, columns=len(found), height=[200] + [110] * (len(present) - 1), linked="x")
    traces: list[dict[str, Any]] = []
    for column, (lines, said) in enumerate(found.values()):
        for row, part in enumerate(present):
            axes = panels.axes(row * len(found) + column)
            mine = {key: pairs for (p, key), pairs in lines.items() if p == part}
            traces += [{**_line(key, pairs, names.index(key), PARTS[part]), **axes} for key, pairs in mine.items()]
        traces += [{**t, **panels.axes(column)} for t in _marks(said)]
    layout = panels.layout("Penalties, their weights, and what was said", x={"title": {"text": "step"}}, y={})
    layout["shapes"] = [
        {
            "type": "line", "xref": panels.axes(column)["xaxis"], "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1,
            "line": {"color": ALARM, "width": 1, "dash": "dot"},
        }
        for column, (_, said) in enumerate(found.values()) for step in said
    ]  # fmt: skip
    for row, part in enumerate(present):
        axis = panels.axes(row * len(found))["yaxis"].replace("y", "yaxis", 1)
        layout[axis]["title"] = {"text": PARTS[part].replace(" (", "<br>(")}
        for column in range(len(found) if part == "penalty_scale" else 0):
            layout[panels.axes(row * len(found) + column)["yaxis"].replace("y", "yaxis", 1)]["range"] = [0, 1.05]
    return Figure(once(traces), layout)


def _named(scalars: Any) -> dict[str, Any]:
    if isinstance(scalars, Mapping) and scalars and all(isinstance(v, (Mapping, Run)) for v in scalars.values()):
        return dict(scalars)
    return {"": scalars}


def _alarms(one: Scalars | Run) -> dict[int, Sequence[str]]:
    return dict(one.alarms) if isinstance(one, Run) else {}


def _lines(one: Scalars | Run) -> dict[tuple[str, str], Series]:
    """{(part, confounder with its prefix and penalty): pairs}."""
    out: dict[tuple[str, str], Series] = {}
    for tag, pairs in (one.scalars if isinstance(one, Run) else one).items():
        parts = tag.split("/")
        at = next((i for i, p in enumerate(parts[:-1]) if p in PARTS), None)
        if at is not None and len(pairs):
            out[parts[at], "/".join(parts[:at] + parts[at + 1 :])] = pairs
    return out


def _line(key: str, pairs: Series, index: int, part: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": escape(key), "x": [s for s, _ in pairs], "y": [v for _, v in pairs],
        "line": {"color": WARM[index % len(WARM)], "dash": DASHES[index // len(WARM) % len(DASHES)], "width": 2},
        "hoverinfo": "text", "hovertext": [hover(f"{key}, {part}: {number(v)}", f"step {s}") for s, v in pairs],
    }  # fmt: skip


def _marks(said: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    if not said:
        return []
    return [
        {
            "type": "scatter", "mode": "markers", "name": "alarm", "x": list(said), "y": [0] * len(said), "cliponaxis": False,
            "marker": {"symbol": "triangle-up", "color": ALARM, "size": 12}, "hoverinfo": "text",
            "hovertext": [hover(f"step {step}", *texts) for step, texts in said.items()],
        }
    ]  # fmt: skip
