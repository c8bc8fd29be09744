"""What the output is made of over training, stacked to 1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lightning_interp.events import Record
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import OWN, Run, Sources, finite, require, runs
from lightning_interp.report.series import once
from lightning_interp.report.theme import LIGHT_GREY, Style, styles
from lightning_interp.report.wording import escape, hover, percent, reason, when


def contributions(records: Sources) -> Figure:
    """Shares of the output's variance over steps, stacked to 1: confounders below, concepts above, `unexplained` last.

    Args:
        records: events, records or a `Run`; or {run: one of these}, drawn side by side.

    Returns:
        A `Figure` with a bar for every event. What was withheld leaves the bar short, with the reason on hover.

    Raises:
        InterpError: contribution was not measured.
    """
    found = runs(records)
    require(found, "contribution")
    names = list(dict.fromkeys(n for run in found.values() for n in run.variables if run.line("contribution", n)))
    confounders = [n for n in names if any(n in run.confounders for run in found.values())]
    order = [*confounders, *(n for n in names if n not in confounders), *OWN]
    look = styles(names, confounders)
    panels = Panels([escape(name) for name in found])
    data = once([{**t, **panels.axes(i)} for i, run in enumerate(found.values()) for t in _bars(run, order, look)])
    layout = panels.layout(
        "What the output is made of",
        x={"title": {"text": "step"}},
        y={"title": {"text": "share of the output's variance"}, "range": [0, 1], "tickformat": ".0%"},
        barmode="relative",
        bargap=0,
    )
    layout["legend"]["traceorder"] = "normal"
    return Figure(data, layout)


def _bars(run: Run, order: Sequence[str], look: dict[str, Style]) -> list[dict[str, Any]]:
    out = []
    width = dict(zip(run.steps("contribution"), widths(run.steps("contribution"))))
    for name in order:
        rows = [r for r in run.line("contribution", name) if finite(r["value"])]
        if not rows:
            continue
        debiased = {r["step"]: r["value"] for r in run.line("contribution", name, "debiased")}
        marker = {"color": look[name].colour, "line": {"width": 0}, "pattern": _pattern(look[name])}
        out.append(
            {
                "type": "bar", "name": escape(name), "x": [r["step"] for r in rows], "y": [r["value"] for r in rows],
                "width": [width[r["step"]] for r in rows], "marker": marker, "hoverinfo": "text", "textposition": "none",
                "hovertext": [_text(name, r, debiased.get(r["step"])) for r in rows],
            }
        )  # fmt: skip
    return out + _withheld(run, width)


def _withheld(run: Run, width: dict[int, float]) -> list[dict[str, Any]]:
    rows = [r for r in run.rows("contribution") if r["by"] is None]
    missing: dict[int, list[Record]] = {}
    for r in rows:
        if not finite(r["value"]):
            missing.setdefault(r["step"], []).append(r)
    if not missing:
        return []
    known = {s: sum(r["value"] for r in rows if r["step"] == s and finite(r["value"])) for s in missing}
    texts = [hover(*(f"{r['variable']}: {reason(r)}" for r in found), when(found[0])) for found in missing.values()]
    return [
        {
            "type": "bar", "name": "withheld", "x": list(missing), "y": [max(0.02, 1 - known[s]) for s in missing],
            "width": [width[s] for s in missing], "hoverinfo": "text", "textposition": "none",
            "marker": {"color": "rgba(0,0,0,0)", "line": {"width": 0}, "pattern": {"shape": ".", "fgcolor": LIGHT_GREY}},
            "hovertext": texts,
        }
    ]  # fmt: skip


def _pattern(style: Style) -> dict[str, Any]:
    return {"shape": style.pattern, "fillmode": "replace" if style.pattern == "/" else "overlay", "size": 7, "solidity": 0.35}


def _text(name: str, r: Record, debiased: float | None) -> str:
    between = "" if r["low"] is None or r["high"] is None else f"95 % interval {percent(r['low'])} to {percent(r['high'])}"
    head = f"{name}: {percent(r['value'])}" + ("" if debiased is None else f" (debiased {percent(debiased)})")
    return hover(head, between, when(r), r["note"])


def widths(steps: Sequence[int]) -> list[float]:
    """How wide the bar at every step is: so that it reaches to the nearest other, and to no more."""
    if len(steps) < 2:
        return [1.0] * len(steps)
    gaps = [b - a for a, b in pairwise(steps)]
    return [float(min(gaps[max(0, i - 1) : i + 1])) for i in range(len(steps))]
