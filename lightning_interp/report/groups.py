"""Accuracy of the groups over training, the worst of them marked."""

from __future__ import annotations

from typing import Any

from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run, Sources, require, runs
from lightning_interp.report.series import line, once, withheld
from lightning_interp.report.theme import ALARM, COOL, DASHES, Style
from lightning_interp.report.wording import escape, hover, percent, when

ROOM = 0.15  # accuracy under which there is no room for a line of text below the worst group


def groups(records: Sources) -> Figure:
    """Accuracy of every cell over steps; the worst is drawn thick, and named on hover and at its last event.

    Args:
        records: events, records or a `Run`; or {run: one of these}, drawn side by side on the same axes.

    Raises:
        InterpError: groups were not measured.
    """
    found = runs(records)
    require(found, "group")
    cells = list(dict.fromkeys(r["by"] for run in found.values() for r in run.rows("group") if r["by"] is not None))
    look = {c: Style(COOL[i % len(COOL)], DASHES[i // len(COOL) % len(DASHES)]) for i, c in enumerate(cells)}
    panels = Panels([escape(name) for name in found])
    traces = [{**t, **panels.axes(i)} for i, run in enumerate(found.values()) for t in _lines(run, cells, look)]
    y = {"title": {"text": "accuracy"}, "range": [-0.02, 1.02], "tickformat": ".0%"}
    layout = panels.layout("Accuracy by group", x={"title": {"text": "step"}}, y=y)
    for i, run in enumerate(found.values()):
        layout["annotations"] += _label(run, panels.axes(i))
    return Figure(once(traces), layout)


def _lines(run: Run, cells: list[str], look: dict[str, Style]) -> list[dict[str, Any]]:
    out = []
    for cell in cells:
        rows = run.line("group", "accuracy", cell)
        if rows:
            out.append(line(cell, rows, look[cell], [hover(f"{cell}: {percent(r['value'])}", when(r)) for r in rows]))
            out[-1]["line"]["width"] = 1.5
    worst = run.line("group", "worst_accuracy")
    if worst:
        texts = [hover(f"worst group: {r['note']}, {percent(r['value'])}", when(r)) for r in worst]
        out.append(line("worst group", worst, Style(ALARM), texts))
        out[-1]["line"]["width"] = 5
        out[-1]["opacity"] = 0.75
    crosses = withheld([("worst group", r) for r in worst], at=0.0)
    return out if crosses is None else [*out, crosses]


def _label(run: Run, axes: dict[str, str]) -> list[dict[str, Any]]:
    worst = [r for r in run.line("group", "worst_accuracy") if r["value"] is not None]
    if not worst:
        return []
    last = worst[-1]
    return [
        {
            "text": escape(f"worst: {last['note']}, {percent(last['value'])}"), "x": last["step"], "y": last["value"],
            "xref": axes["xaxis"], "yref": axes["yaxis"], "showarrow": False, "xanchor": "right",
            "yanchor": "bottom" if last["value"] < ROOM else "top", "yshift": 8 if last["value"] < ROOM else -8,
            "font": {"size": 12},
        }
    ]  # fmt: skip
