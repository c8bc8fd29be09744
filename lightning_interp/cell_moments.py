"""Second moments of an activation by cell, while training goes on and cells come as they are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.moments import Moments, moments
from lightning_interp.functional.unique import unique_rows

FORGOTTEN = 0.5  # rows under which a faded cell counts as gone


class CellMoments(NamedTuple):
    """Moments whose groups are named; they add, whatever cells either side has seen.

    Attributes:
        discrete: which variables make the cells; the others are the continuous columns of the moments.
        keys: raw values of the discrete variables in each cell.
        moments: group 0 is all rows, group i + 1 the cell i.
    """

    discrete: tuple[bool, ...]
    keys: tuple[tuple[float, ...], ...]
    moments: Moments

    @property
    def rows(self) -> float:
        """Number of rows, faded ones in part."""
        return float(self.moments.count[0])

    def __add__(self, other: CellMoments) -> CellMoments:  # type: ignore[override]  # merging, not joining tuples
        """Both sets of rows together; the same variables must make the cells."""
        known = set(self.keys)
        keys = (*self.keys, *(key for key in other.keys if key not in known))
        return CellMoments(self.discrete, keys, self.aligned(keys) + other.aligned(keys))

    def aligned(self, keys: Sequence[tuple[float, ...]]) -> Moments:
        """The moments with the cells of `keys`, in that order; empty where there are none."""
        place = {key: i + 1 for i, key in enumerate(self.keys)}
        index = torch.tensor([0, *(place.get(key, -1) for key in keys)], device=self.moments.count.device)
        return self.moments.select(index)

    def faded(self, factor: float) -> CellMoments:
        """Every row counts `factor` times, 0…1; cells of which nothing is left are dropped."""
        count, mean, cross, gram = self.moments
        faded = self._replace(moments=Moments(count * factor, mean, cross * factor, gram * factor))
        keys = tuple(key for key, n in zip(self.keys, faded.moments.count[1:].tolist()) if n >= FORGOTTEN)
        return faded if keys == self.keys else faded._replace(keys=keys, moments=faded.aligned(keys))

    def to(self, device: torch.device | str) -> CellMoments:
        """The same on a device."""
        return self._replace(moments=Moments(*(part.to(device) for part in self.moments)))

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {"discrete": list(self.discrete), "keys": [list(key) for key in self.keys], "moments": list(self.moments)}


def cell_moments(h: Tensor, values: Tensor, discrete: Sequence[bool]) -> CellMoments:
    """The moments of rows.

    Args:
        h: pooled activations `[n, d]`.
        values: raw values of the variables `[n, p]`.
        discrete: which of them make the cells.
    """
    columns = torch.tensor(discrete, device=values.device)
    rows, index = unique_rows(values[:, columns].contiguous())
    found = moments(h, values[:, ~columns], index.unsqueeze(1) + 1, len(rows) + 1)
    return CellMoments(tuple(discrete), tuple(map(tuple, rows.tolist())), found)


def from_state(state: Mapping[str, Any]) -> CellMoments:
    """What `CellMoments.state_dict` gave."""
    return CellMoments(tuple(state["discrete"]), tuple(map(tuple, state["keys"])), Moments(*state["moments"]))
