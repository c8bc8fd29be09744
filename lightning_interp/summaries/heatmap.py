"""Decodability of every variable at every layer, as a picture."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from lightning_interp.events import Event

MAX_VARIABLES = 100  # columns of a picture that can be read and drawn; with more there is none
_DPI = 80
_CHARACTERS = "0123456789.-–"


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

    Names and axes are drawn once, by matplotlib's Figure object, so that pyplot and its global state stay out of the training
    process. An event repaints the cells only, pixel by pixel: a twentieth of the time.

    Args:
        layers: their names, from top to bottom.
        variables: their names, from left to right.
    """

    def __init__(self, layers: list[str], variables: list[str]) -> None:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.layers, self.variables = layers, variables
        height = 1.0 + 0.32 * len(layers)
        label = 0.085 * max(map(len, layers)) + 0.3
        width = label + max(2.2, 0.75 * len(variables)) + 0.2
        figure = Figure(figsize=(width, height), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((label / width, 0.5 / height, 1 - (label + 0.2) / width, 1 - 0.9 / height))
        axes.set_xlim(-0.5, len(variables) - 0.5)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_xticks(range(len(variables)), variables, parse_math=False)  # a name with dollars is no formula
        axes.set_yticks(range(len(layers)), layers, parse_math=False)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)  # half of each line would lie under the cells
        axes.set_title("decodability, R²", fontsize=9)
        canvas.draw()
        self._background = np.asarray(canvas.buffer_rgba())[..., :3].copy()
        corner = axes.get_window_extent()
        tall = len(self._background)
        self._across = np.linspace(corner.x0, corner.x1, len(variables) + 1).round().astype(int)
        self._down = np.linspace(tall - corner.y1, tall - corner.y0, len(layers) + 1).round().astype(int)
        self._colours = mpl.colormaps["viridis"]
        self._glyphs = _glyphs()

    def draw(self, grid: np.ndarray) -> np.ndarray:
        """The picture for R² values `[layers, variables]`, uint8 `[height, width, 3]`."""
        picture = self._background.copy()
        known = np.isfinite(grid)
        colours = (255 * self._colours(np.where(known, grid, 0.0).clip(0, 1))[..., :3]).round().astype(np.uint8)
        colours[~known] = 255
        dark = ~known | (np.nan_to_num(grid) > 0.6)
        for i, j in np.ndindex(grid.shape):
            cell = picture[self._down[i] : self._down[i + 1], self._across[j] : self._across[j + 1]]
            cell[:] = colours[i, j]
            self._write(cell, f"{grid[i, j]:.2f}" if known[i, j] else "–", 0 if dark[i, j] else 255)
        return picture

    def _write(self, cell: np.ndarray, text: str, ink: int) -> None:
        """Write in the middle of a cell, as much as it holds."""
        mask = np.concatenate([self._glyphs[c] for c in text], axis=1)
        top, left = (max(0, (a - b) // 2) for a, b in zip(cell.shape, mask.shape))
        place = cell[top : top + mask.shape[0], left : left + mask.shape[1]]
        cover = mask[: place.shape[0], : place.shape[1], None]
        place[:] = (place * (1 - cover) + ink * cover).round()


@lru_cache(maxsize=1)
def _glyphs() -> dict[str, np.ndarray]:
    """How much of each pixel a character of a number covers, 0…1, `[height, width]`, all of one height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    font, side = FontProperties(size=8), 24
    figure = Figure(figsize=(len(_CHARACTERS) * side / _DPI, side / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    for i, c in enumerate(_CHARACTERS):
        figure.text((i + 0.25) / len(_CHARACTERS), 0.25, c, fontproperties=font)
    canvas.draw()
    cover = 1 - np.asarray(canvas.buffer_rgba())[..., 0] / 255
    rows = np.flatnonzero(cover.any(1))
    found = {}
    for i, c in enumerate(_CHARACTERS):
        wide = round(canvas.get_renderer().get_text_width_height_descent(c, font, False)[0])
        found[c] = cover[rows[0] : rows[-1] + 1, i * side + side // 4 :][:, :wide]
    return found
