"""Where in the network: a measure at every layer, for every variable."""

from __future__ import annotations

from typing import Any

from lightning_interp.errors import InterpError, nearest
from lightning_interp.events import Record
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run, Sources, finite, require, runs
from lightning_interp.report.theme import DIVERGING, SEQUENTIAL
from lightning_interp.report.wording import escape, hover, number, reason, when

TITLES = {
    "decodability": "Can be read at the layer: decodability, R²",
    "selectivity": "R² above random controls",
    "decodability_accuracy": "Can be read at the layer: balanced accuracy",
    "decodability_auroc": "Can be read at the layer: area under the ROC curve",
    "drift": "Turned since the last event: 1 − cosine",
    "sensitivity": "The output answers to a step along the direction: logits per unit",
    "tcav": "TCAV score: fraction of positive derivatives",
    "mediation": "Gone of the effect when erased at the layer: fraction",
    "entanglement": "Shared directions: cosine",
    "collateral_decodability": "Lost by erasing another: R²",
}
DIVERGES = {"sensitivity": None, "mediation": 1.0, "mediation_random": 1.0, "collateral_decodability": 1.0}
MEASURES = tuple(TITLES)
ROW = 30  # pixels per layer


def heatmap(records: Sources, measure: str = "decodability", step: int | None = None, by: str | None = None) -> Figure:
    """A measure at one step, layers down and variables across.

    Args:
        records: events, records or a `Run`; or {run: one of these}, drawn side by side.
        measure: any of a layer, such as "decodability", "sensitivity", "mediation", "entanglement".
        step: the last event not after it; None: the last. The colours' range does not depend on it.
        by: the class or level of a sensitivity, or the variable erased in a mediation; None: the variable's one number, and of
            mediation what erasing each variable does to its own effect.

    Returns:
        A `Figure`; what was withheld is a gap with the reason on hover.

    Raises:
        InterpError: the measure, or `by`, is not among the records.
    """
    found = runs(records)
    require(found, measure)
    cells = {name: _cells(run, measure, by) for name, run in found.items()}
    if not any(cells.values()):
        known = dict.fromkeys(str(r["by"]) for run in found.values() for r in run.rows(measure) if r["by"] is not None)
        raise InterpError(f"`by={by!r}`: no '{measure}' at a layer goes by that.{nearest(str(by), known)}")
    at = {name: run.step(measure, step) for name, run in found.items()}
    layers = max((len({r["layer"] for r, _ in rows}) for rows in cells.values()), default=1)
    titles = [", ".join(filter(None, (escape(n), "" if at[n] is None else f"step {at[n]}"))) for n in found]
    alike = len({tuple(dict.fromkeys(r["layer"] for r, _ in rows)) for rows in cells.values()}) == 1
    panels = Panels(titles, columns=3 if alike else 1, height=ROW * max(2, layers) + 30, linked="")
    low, high = _range(measure, [r["value"] for rows in cells.values() for r, _ in rows if finite(r["value"])])
    colours = {
        "colorscale": DIVERGING if measure in DIVERGES else SEQUENTIAL, "cmin": low, "cmax": high,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }  # fmt: skip
    data = [
        {**_grid([c for c in rows if c[0]["step"] == at[name]]), **panels.axes(i)}
        for i, (name, rows) in enumerate(cells.items())
    ]
    title = TITLES.get(measure, measure) + ("" if by is None else f" ({by})")
    categories = {"type": "category", "showgrid": False}
    layout = panels.layout(title, x=categories, y={**categories, "autorange": "reversed"}, coloraxis=colours)
    for i in range(len(found)):
        if i % panels.columns:  # the same layers stand beside the first column
            layout[panels.axes(i)["yaxis"].replace("y", "yaxis", 1)]["showticklabels"] = False
    layout["margin"]["b"] = 40  # no legend
    layout["height"] -= 44
    return Figure(data, layout)


def _cells(run: Run, measure: str, by: str | None) -> list[tuple[Record, str]]:
    """(record, what its column is called) of the grid, over all steps."""
    rows = [r for r in run.rows(measure) if r["layer"] is not None and r["variable"] is not None]
    if measure in ("entanglement", "collateral_decodability") and by is None:
        sign = " × " if measure == "entanglement" else " without "
        return [(r, f"{r['variable']}{sign}{r['by']}") for r in rows]
    if measure.startswith("mediation") and by is None:
        return [(r, r["variable"]) for r in rows if r["by"] == r["variable"]]
    return [(r, r["variable"]) for r in rows if r["by"] == by]


def _range(measure: str, values: list[float]) -> tuple[float, float]:
    if measure not in DIVERGES:
        return 0.0, 1.0
    size = DIVERGES[measure] or max((abs(v) for v in values), default=1.0) or 1.0
    return -size, size


def _grid(cells: list[tuple[Record, str]]) -> dict[str, Any]:
    layers = list(dict.fromkeys(r["layer"] for r, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    at = {(r["layer"], column): r for r, column in cells}
    rows = [[at.get((layer, column)) for column in columns] for layer in layers]
    return {
        "type": "heatmap", "coloraxis": "coloraxis", "x": [escape(c) for c in columns], "y": [escape(n) for n in layers],
        "z": [[r["value"] if r and finite(r["value"]) else None for r in row] for row in rows],
        "text": [[_cell(r) if r else "" for r in row] for row in rows], "texttemplate": "%{text}",
        "hovertext": [[_text(r, c) if r else "" for r, c in zip(row, columns)] for row in rows],
        "hoverinfo": "text", "hoverongaps": True, "xgap": 2, "ygap": 2,
    }  # fmt: skip


def _cell(r: Record) -> str:
    if r["measure"] == "sensitivity" or not finite(r["value"]):
        return number(r["value"])
    return f"{round(r['value'], 2) + 0.0:.2f}".replace("-", "−")


def _text(r: Record, column: str) -> str:
    value = number(r["value"]) if finite(r["value"]) else reason(r)
    return hover(f"{column} at {r['layer']}", value, when(r), r["note"] if finite(r["value"]) else "")
