"""Effects over training, with their intervals, beside what an intervention says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.errors import InterpError, nearest
from lightning_interp.events import Record
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run, Sources, require, runs
from lightning_interp.report.series import band, line, once, withheld
from lightning_interp.report.theme import Style, styles
from lightning_interp.report.wording import escape, hover, interval, number, when


def effects(records: Sources, variable: str | None = None) -> Figure:
    """Effects of the variables over steps, with bands for their 95 % intervals, dotted what an intervention says.

    Args:
        records: events, records or a `Run`; or {run: one of these}, drawn side by side on the same axes.
        variable: one whose classes or levels are drawn; None: one line per variable.

    Raises:
        InterpError: effects were not measured, or not of that variable.
    """
    found = runs(records)
    require(found, "effect")
    if variable is None:
        names = list(dict.fromkeys(n for run in found.values() for n in run.variables if run.line("effect", n)))
        look = styles(names, [n for n in names if any(n in run.confounders for run in found.values())])
    else:
        names = _levels(found, variable)
        look = styles(names, ())
    panels = Panels([escape(name) for name in found])
    traces = [{**t, **panels.axes(i)} for i, run in enumerate(found.values()) for t in _lines(run, variable, names, look)]
    title = "Effects over training" if variable is None else f"Effects of {variable}"
    x, y = {"title": {"text": "step"}}, {"title": {"text": "effect (logits)"}, "zeroline": True}
    return Figure(once(traces), panels.layout(title, x=x, y=y))


def _levels(found: dict[str, Run], variable: str) -> list[str]:
    rows = [r for run in found.values() for r in run.rows("effect")]
    levels = dict.fromkeys(r["by"] for r in rows if r["variable"] == variable and r["by"] not in (None, "robustness"))
    if levels:
        return list(levels)
    known = dict.fromkeys(r["variable"] for r in rows if r["by"] not in (None, "robustness"))
    raise InterpError(f"`variable={variable!r}` has no effects by class or level.{nearest(variable, known)}")


def _lines(run: Run, variable: str | None, names: Sequence[str], look: dict[str, Style]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    named: list[tuple[str, Record]] = []
    for name in names:
        which = (name, None) if variable is None else (variable, name)
        rows, truth = run.line("effect", *which), run.line("intervention", *which)
        if not rows:
            continue
        named += [(name, r) for r in rows]
        shade = band(rows, look[name])
        out += [] if shade is None else [{**shade, "legendgroup": escape(name)}]
        out.append(line(name, rows, look[name], [_text(name, r) for r in rows]))
        if truth:
            dotted = Style(look[name].colour, "dot")
            out.append(line(f"do({name})", truth, dotted, [_text(f"do({name})", r) for r in truth]))
            out[-1]["marker"] |= {"symbol": "diamond-open", "size": 8}
    crosses = withheld(named, at=0.0)
    return out if crosses is None else [*out, crosses]


def _text(name: str, r: Record) -> str:
    return hover(f"{name}: {number(r['value'])}{interval(r)}", when(r), r["note"])
