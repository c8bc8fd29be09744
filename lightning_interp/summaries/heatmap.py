"""Decodability of every variable at every layer, as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_interp.events import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def decodability_heatmap(event: Event) -> Figure | None:
    """A heat map of R², layers down and variables across; None where the event has no decodability.

    Drawn with matplotlib's Figure object, so that pyplot and its global state stay out of the training process.

    Args:
        event: what to draw.
    """
    if not event.decodability:
        return None
    from matplotlib.figure import Figure

    layers = list(event.decodability)
    variables = list(next(iter(event.decodability.values())))
    grid = [[_value(event, layer, v) for v in variables] for layer in layers]
    height = 1.1 + 0.32 * len(layers)
    label = 0.085 * max(map(len, layers)) + 0.3
    width = label + max(2.2, 0.75 * len(variables)) + 0.2
    figure = Figure(figsize=(width, height), dpi=80)
    axes = figure.add_axes((label / width, 0.5 / height, 1 - (label + 0.2) / width, 1 - 0.95 / height))
    axes.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(variables)), variables)
    axes.set_yticks(range(len(layers)), layers)
    axes.tick_params(length=0, labelsize=8)
    axes.set_title("decodability, R²", fontsize=9)
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            shade = "black" if value > 0.6 else "white"
            text = "–" if math.isnan(value) else f"{value:.2f}"
            axes.text(j, i, text, ha="center", va="center", color=shade, fontsize=8)
    return figure


def _value(event: Event, layer: str, variable: str) -> float:
    score = event.decodability[layer].get(variable)
    return math.nan if score is None or score.value is None else score.value
