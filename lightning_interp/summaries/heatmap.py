"""Decodability of every variable at every layer, as a picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_interp.events import Event

MAX_VARIABLES = 100  # columns of a picture that can be read and drawn; with more there is none


def decodability_grid(event: Event) -> tuple[list[str], list[str], np.ndarray]:
    """Layers, variables, and R² `[layers, variables]`, NaN where withheld."""
    layers = list(event.decodability)
    variables = list(dict.fromkeys(name for scores in event.decodability.values() for name in scores))
    grid = np.full((len(layers), len(variables)), math.nan)
    for i, layer in enumerate(layers):
        for j, name in enumerate(variables):
            score = event.decodability[layer].get(name)
            grid[i, j] = math.nan if score is None or score.value is None else score.value
    return layers, variables, grid


class Heatmap:
    """A heat map of R², layers down and variables across, drawn again and again with other numbers.

    Names and axes are drawn once: an event repaints the cells only, in a third of the time. Drawn with matplotlib's Figure
    object, so that pyplot and its global state stay out of the training process.

    Args:
        layers: their names, from top to bottom.
        variables: their names, from left to right.
    """

    def __init__(self, layers: list[str], variables: list[str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.layers, self.variables = layers, variables
        height = 1.0 + 0.32 * len(layers)
        label = 0.085 * max(map(len, layers)) + 0.3
        width = label + max(2.2, 0.75 * len(variables)) + 0.2
        figure = Figure(figsize=(width, height), dpi=80)
        self._canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((label / width, 0.5 / height, 1 - (label + 0.2) / width, 1 - 0.9 / height))
        shape = (len(layers), len(variables))
        self._image = axes.imshow(np.zeros(shape), vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto", animated=True)
        axes.set_xticks(range(len(variables)), variables, parse_math=False)  # a name with dollars is no formula
        axes.set_yticks(range(len(layers)), layers, parse_math=False)
        axes.tick_params(length=0, labelsize=8)
        axes.set_title("decodability, R²", fontsize=9)
        self._axes = axes
        self._texts = [axes.text(j, i, "", ha="center", va="center", fontsize=8, animated=True) for i, j in np.ndindex(shape)]
        self._canvas.draw()
        self._background: Any = self._canvas.copy_from_bbox(figure.bbox)

    def draw(self, grid: np.ndarray) -> np.ndarray:
        """The picture for R² values `[layers, variables]`, uint8 `[height, width, 3]`."""
        self._canvas.restore_region(self._background)
        self._image.set_data(np.ma.masked_invalid(grid))
        self._axes.draw_artist(self._image)
        for text, value in zip(self._texts, grid.ravel()):
            text.set_text("–" if math.isnan(value) else f"{value:.2f}")
            text.set_color("black" if math.isnan(value) or value > 0.6 else "white")
            self._axes.draw_artist(text)
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
