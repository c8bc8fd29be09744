"""Lines over steps, with bands for their intervals and marks where a value is withheld."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.events import Record
from lightning_interp.report.run import finite
from lightning_interp.report.theme import GREY, Style
from lightning_interp.report.wording import escape, hover, reason, when

MANY = 60  # events of a line, over which its markers are small


def line(name: str, rows: Sequence[Record], style: Style, texts: Sequence[str], **more: Any) -> dict[str, Any]:
    """A line with markers; a gap where a value is withheld.

    Args:
        name: for the legend, unescaped.
        rows: records in the order of their steps.
        style: its colour and dash.
        texts: what to say on hover, escaped, one per row.
        more: further keys of the trace.
    """
    return {
        "type": "scatter", "mode": "lines+markers", "name": escape(name), "connectgaps": False,
        "x": [r["step"] for r in rows], "y": [r["value"] if finite(r["value"]) else None for r in rows],
        "line": {"color": style.colour, "dash": style.dash, "width": 2.5},
        "marker": {"color": style.colour, "size": 6 if len(rows) <= MANY else 3},
        "hoverinfo": "text", "hovertext": list(texts), **more,
    }  # fmt: skip


def band(rows: Sequence[Record], style: Style) -> dict[str, Any] | None:
    """The intervals as a band, one polygon for every stretch without a gap; None where all are withheld."""
    stretches: list[list[Record]] = [[]]
    for r in rows:
        if finite(r["low"]) and finite(r["high"]):
            stretches[-1].append(r)
        elif stretches[-1]:
            stretches.append([])
    x: list[int | None] = []
    y: list[float | None] = []
    for stretch in filter(None, stretches):
        x += [None] * bool(x) + [r["step"] for r in stretch] + [r["step"] for r in reversed(stretch)]
        y += [None] * bool(y) + [r["high"] for r in stretch] + [r["low"] for r in reversed(stretch)]
    if not x:
        return None
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "fill": "toself", "fillcolor": style.faint,
        "line": {"width": 1.5, "color": style.faint}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def withheld(named: Sequence[tuple[str, Record]], at: float) -> dict[str, Any] | None:
    """Crosses where values are withheld, with the reason on hover; None where none is.

    Args:
        named: (what it is, record) pairs.
        at: height of the crosses.
    """
    missing: dict[int, list[tuple[str, Record]]] = {}
    for name, r in named:
        if not finite(r["value"]):
            missing.setdefault(r["step"], []).append((name, r))
    if not missing:
        return None
    return {
        "type": "scatter", "mode": "markers", "name": "withheld", "x": list(missing), "y": [at] * len(missing),
        "marker": {"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": GREY}}, "hoverinfo": "text",
        "hovertext": [hover(*(f"{n}: {reason(r)}" for n, r in found), when(found[0][1])) for found in missing.values()],
    }  # fmt: skip


def once(traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The traces with every name in the legend once, switched on and off together."""
    shown: set[str] = set()
    out = []
    for trace in traces:
        name = str(trace.get("name", trace.get("legendgroup", "")))
        visible = trace.get("showlegend", True) and name not in shown
        out.append({"legendgroup": name, **trace, "showlegend": visible})
        if visible:
            shown.add(name)
    return out
