"""The heat map's picture: cells where they belong, in the colours of their numbers, names drawn once."""

import math

import matplotlib as mpl
import numpy as np

from lightning_interp.summaries import Heatmap

LAYERS, VARIABLES = ["encoder.conv1", "head"], ["digit", "grass", "scanner"]


def cell(heatmap: Heatmap, picture: np.ndarray, i: int, j: int) -> np.ndarray:
    return picture[heatmap._down[i] : heatmap._down[i + 1], heatmap._across[j] : heatmap._across[j + 1]]


def viridis(value: float) -> list[int]:
    return (255 * np.array(mpl.colormaps["viridis"](value))[:3]).round().astype(int).tolist()


def test_every_cell_has_the_colour_of_its_number():
    grid = np.array([[0.0, 0.25, 1.0], [-3.0, 1.7, math.nan]])
    heatmap = Heatmap(LAYERS, VARIABLES)
    picture = heatmap.draw(grid)
    for (i, j), value in np.ndenumerate(grid):
        wanted = [255] * 3 if math.isnan(value) else viridis(min(max(value, 0.0), 1.0))
        assert cell(heatmap, picture, i, j)[1, 1].tolist() == wanted


def test_numbers_stand_in_the_cells_dark_on_light_and_light_on_dark():
    heatmap = Heatmap(LAYERS, VARIABLES)
    picture = heatmap.draw(np.array([[0.1, 0.9, math.nan], [0.5, 0.61, 0.6]])).astype(int)
    for (i, j), dark in np.ndenumerate(np.array([[False, True, True], [False, True, False]])):
        found = cell(heatmap, picture, i, j)
        written = np.abs(found - found[1, 1]).sum(2)
        assert written.any()
        assert (found[np.unravel_index(written.argmax(), written.shape)].mean() < found[1, 1].mean()) == dark
        middle = np.array(np.nonzero(written)).mean(1)
        assert np.abs(middle - np.array(found.shape[:2]) / 2).max() < 3


def test_what_is_drawn_again_leaves_nothing_behind():
    heatmap = Heatmap(LAYERS, VARIABLES)
    first, other = np.full((2, 3), 0.88), np.full((2, 3), -1.0)
    once = heatmap.draw(first)
    heatmap.draw(other)
    assert (heatmap.draw(first) == once).all()
    outside = np.ones(once.shape[:2], bool)
    outside[heatmap._down[0] : heatmap._down[-1], heatmap._across[0] : heatmap._across[-1]] = False
    assert (heatmap.draw(other)[outside] == once[outside]).all()


def test_a_number_that_is_too_long_is_cut_and_spills_nowhere():
    heatmap = Heatmap(LAYERS, VARIABLES)
    plain, long = np.zeros((2, 3)), np.zeros((2, 3))
    long[0, 1] = -1234567890123.0
    changed = (heatmap.draw(plain) != heatmap.draw(long)).any(2)
    cell(heatmap, changed, 0, 1)[:] = False
    assert not changed.any()
