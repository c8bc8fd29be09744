"""The equation at one step: every effect with its interval, beside what an intervention says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.events import Record
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run, Sources, finite, require, runs
from lightning_interp.report.series import once
from lightning_interp.report.theme import GREY, Style, styles
from lightning_interp.report.wording import escape, hover, interval, number, reason, signed, when

LINE = 110  # characters of the equation in one line
ROW = 34  # pixels per variable


def equation(records: Sources, step: int | None = None) -> Figure:
    """The effects of the variables at one step: a line of text with intervals, and the same as points with bars.

    Args:
        records: events, records or a `Run`; or {run: one of these}, drawn below each other.
        step: the last event not after it; None: the last.

    Returns:
        A `Figure`: per run a point with its 95 % interval for every variable, a diamond for an intervention's effect.

    Raises:
        InterpError: effects were not measured, or not by that step.
    """
    found = runs(records)
    require(found, "effect")
    names = list(dict.fromkeys(n for run in found.values() for n in run.variables if run.line("effect", n)))
    look = styles(names, [n for n in names if any(n in run.confounders for run in found.values())])
    at = {name: run.step("effect", step) for name, run in found.items()}
    titles = [_title(name, equation_text(run, at[name]), at[name]) for name, run in found.items()]
    panels = Panels(titles, columns=1, height=ROW * max(1, len(names)) + 24, linked="xy")
    traces = [
        {**t, **panels.axes(i)} for i, (name, run) in enumerate(found.items()) for t in _points(run, at[name], names, look)
    ]
    layout = panels.layout(
        "What the model uses",
        x={"title": {"text": "effect, in units of the output (logits)"}, "zeroline": True, "rangemode": "tozero"},
        y={"type": "category", "categoryorder": "array", "categoryarray": [escape(n) for n in reversed(names)]},
    )
    return Figure(once(traces), layout)


def equation_text(run: Run, step: int | None) -> str:
    """The equation of the event at a step as one line; from the records alone it has no constant."""
    said = [t for t in run.equations.get(-1 if step is None else step, "").splitlines() if t.endswith("+ unexplained")]
    if said:
        return said[0]
    terms = []
    for r in (r for r in run.rows("effect") if r["step"] == step and r["by"] is None):
        size = f"{signed(r['value'])}·{r['variable']}{interval(r)}" if finite(r["value"]) else f"+ ?·{r['variable']}"
        terms.append(size)
    return f"output = {' '.join(terms).removeprefix('+ ')} + unexplained" if terms else "no event by this step"


def _title(run: str, text: str, step: int | None) -> str:
    where = ", ".join(part for part in (escape(run), "" if step is None else f"step {step}") if part)
    lines, used = [""], 0
    for word in text.split(" "):
        if used + len(word) > LINE:
            lines.append("")
            used = 0
        lines[-1] += f"{word} "
        used += len(word) + 1
    return "<br>".join([f"<b>{where}</b>", *(escape(x.strip()) for x in lines)])


def _points(run: Run, step: int | None, names: Sequence[str], look: dict[str, Style]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for name in names:
        now = [r for r in run.line("effect", name) if r["step"] == step]
        out += [_point(name, r, look[name]) for r in now if finite(r["value"])]
        out += [_missing(name, r) for r in now if not finite(r["value"])]
        truth = [r for r in run.line("intervention", name) if r["step"] == step and finite(r["value"])]
        out += [_truth(name, r, look[name]) for r in truth]
    return out


def _point(name: str, r: Record, style: Style) -> dict[str, Any]:
    bars = finite(r["low"]) and finite(r["high"])
    error = {
        "type": "data", "symmetric": False, "array": [r["high"] - r["value"] if bars else 0],
        "arrayminus": [r["value"] - r["low"] if bars else 0], "thickness": 3, "width": 0, "color": style.colour,
    }  # fmt: skip
    return {
        "type": "scatter", "mode": "markers", "name": escape(name), "x": [r["value"]], "y": [escape(name)],
        "error_x": error, "marker": {"color": style.colour, "size": 11}, "hoverinfo": "text",
        "hovertext": [hover(f"effect of {name}: {number(r['value'])}{interval(r)}", when(r), r["note"])],
    }  # fmt: skip


def _truth(name: str, r: Record, style: Style) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": "do(·): by intervention", "x": [r["value"]], "y": [escape(name)],
        "marker": {"symbol": "diamond-open", "color": style.colour, "size": 15, "line": {"width": 2}}, "hoverinfo": "text",
        "hovertext": [hover(f"do({name}): {number(r['value'])}{interval(r)}", when(r), r["note"])],
    }  # fmt: skip


def _missing(name: str, r: Record) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": "withheld", "x": [0], "y": [escape(name)], "hoverinfo": "text",
        "marker": {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREY}},
        "hovertext": [hover(f"{name}: {reason(r)}", when(r))],
    }  # fmt: skip
