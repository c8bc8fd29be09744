"""Weights of the probe set's rows: balanced over cells where the cells allow it, natural otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.coding import Design
from lightning_interp.functional.unique import unique_rows

MAX_CELLS = 64
MIN_PER_CELL = 5
MIN_EFFECTIVE = 30.0


class Weights(NamedTuple):
    """Weights of grouped rows.

    Attributes:
        mode: "balanced" or "natural", as used.
        row: weight of one sample of each row, `[r]`; `(count * row).sum()` is 1.
        cell: each row's cell, int64 `[r]`.
        cells: level indices of the cells, int64 `[k, discrete]`.
        cell_count: samples in each cell, `[k]`.
        cell_weight: weight of one sample of each cell, `[k]`.
        effective: effective sample size (Σw)²/Σw².
        note: why balanced weights could not be had, or None.
    """

    mode: str
    row: Tensor
    cell: Tensor
    cells: Tensor
    cell_count: Tensor
    cell_weight: Tensor
    effective: float
    note: str | None

    def locate(self, design: Design, values: Tensor) -> Tensor:
        """The cell of raw values `[n, p]` that the weights know, int64 `[n]`; 0 where no variable is discrete."""
        if not design.discrete:
            return torch.zeros(len(values), dtype=torch.int64, device=values.device)
        levels = torch.stack([f.level_index(values[:, f.column]) for f in design.discrete], 1)
        return (levels.unsqueeze(1) == self.cells.unsqueeze(0)).all(2).to(torch.uint8).argmax(1)


def sample_weights(design: Design, values: Tensor, count: Tensor, mode: str) -> Weights:
    """Weigh rows so that every cell counts the same, or every sample.

    Balanced: w = 1/(K·n_cell). It needs every possible cell with 5 samples or more, an effective sample size of 30 or more,
    and at most 64 cells; cells that are empty because one variable is a function of the others are not possible.

    Args:
        design: the coding.
        values: raw values `[r, p]`.
        count: samples per row `[r]`.
        mode: "balanced" or "natural", as asked.

    Returns:
        `Weights`; `mode` says which were used, `note` why not the balanced ones.
    """
    cells, cell = design.cells(values)
    cells = cells.to(values.device)
    n_cell = torch.zeros(len(cells), dtype=torch.float64, device=values.device).index_add_(0, cell, count)
    balanced = 1.0 / (len(cells) * n_cell)
    effective = float(1.0 / (n_cell * balanced**2).sum())
    note = _obstacle(design, cells, n_cell, effective) if mode == "balanced" else None
    if mode == "natural" or note:
        natural = torch.full_like(n_cell, 1.0 / float(count.sum()))
        return Weights("natural", natural[cell], cell, cells, n_cell, natural, float(count.sum()), note)
    return Weights("balanced", balanced[cell], cell, cells, n_cell, balanced, effective, None)


def _obstacle(design: Design, cells: Tensor, n_cell: Tensor, effective: float) -> str | None:
    possible = 1
    for f in design.discrete:
        possible *= len(f.levels)
    if len(cells) > MAX_CELLS:
        return f"natural weights: {len(cells)} cells, balanced ones need at most {MAX_CELLS}"
    many = len(design.discrete) > MAX_CELLS  # more than so few cells can tell apart
    if len(cells) < possible and (many or not structural(cells, [len(f.levels) for f in design.discrete])):
        return f"natural weights: {possible - len(cells)} of {possible} cells are empty"
    smallest = int(n_cell.argmin())
    if n_cell[smallest] < MIN_PER_CELL:
        name = design.cell_names(cells[smallest : smallest + 1])[0]
        return f"natural weights: cell {name} has {int(n_cell[smallest])} samples, balanced ones need {MIN_PER_CELL}"
    if effective < MIN_EFFECTIVE:
        return f"natural weights: balanced ones would have an effective n of {effective:.1f}, under {MIN_EFFECTIVE:.0f}"
    return None


def structural(cells: Tensor, sizes: Sequence[int]) -> bool:
    """Whether all empty cells are so because variables are functions of the others.

    Args:
        cells: level indices of the cells that occur, `[k, discrete]`.
        sizes: number of levels of each variable.
    """
    for j in range(cells.shape[1]):
        others, rest = torch.cat([cells[:, :j], cells[:, j + 1 :]], dim=1), [*sizes[:j], *sizes[j + 1 :]]
        if rest and len(unique_rows(others)[0]) == len(cells) and (math.prod(rest) == len(cells) or structural(others, rest)):
            return True
    return False
