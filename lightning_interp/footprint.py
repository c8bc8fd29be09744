"""What the statistics of layers and variables take in memory, known before: too much is refused, with the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lightning_interp.errors import LayerError
from lightning_interp.metrics.layer import BINS, CONTROLS, WIDE, most_cells

MAX_BYTES = 8 * 2**30  # of one monitor, on the device of the batch; set it to allow more
ROWS = 4096  # different settings of the variables that are counted: the probe set's are not known before
ARRAYS = 22  # of rows × columns that the equation has at a time, as measured from 100 to 1,000 variables
_MIB, _GIB = 2**20, 2**30
_UNITS = ("out_features", "out_channels", "num_features", "embedding_dim", "embed_dim")


class Footprint(NamedTuple):
    """Bytes at most, all in float64 but for the rows that wait.

    Attributes:
        layers: {layer: what is held of it until the event is over}.
        event: what reading the largest of them takes for a moment.
        equation: what fitting the equation to `ROWS` rows takes for a moment.
        units: {layer: its number of units}.
        max_samples: single rows kept.
    """

    layers: dict[str, int]
    event: int
    equation: int
    units: dict[str, int]
    max_samples: int

    @property
    def total(self) -> int:
        """All layers, and the largest being read or the equation being fitted: one comes after the other."""
        return sum(self.layers.values()) + max(self.event, self.equation)

    def __str__(self) -> str:
        fitted = f" ({_size(self.equation)} for the equation)" if self.equation > self.event else ""
        return f"statistics of {len(self.layers)} layers take up to {_size(self.total)}{fitted}"

    def check(self) -> None:
        """Refuse what takes more than `MAX_BYTES`.

        Raises:
            LayerError: it names the largest layer, or the variables, the bytes, the limit and what may be done.
        """
        if self.total <= MAX_BYTES:
            return
        if self.equation > sum(self.layers.values()):
            raise LayerError(
                f"`variables`: {self}, over the {_size(MAX_BYTES)} allowed (`lightning_interp.footprint.MAX_BYTES`). Name "
                "fewer variables, or raise the limit."
            )
        largest = max(self.layers, key=self.layers.__getitem__)
        raise LayerError(
            f"`layers`: {self}, over the {_size(MAX_BYTES)} allowed (`lightning_interp.footprint.MAX_BYTES`); the largest, "
            f"'{largest}' with {self.units[largest]} units, {_size(self.layers[largest])}. Name fewer layers, keep fewer rows "
            f"(`max_samples={self.max_samples}`), or raise the limit."
        )


def footprint(units: Mapping[str, int], kinds: Sequence[str], max_samples: int, itemsize: int = 4) -> Footprint:
    """What is taken at most: rows that wait to be summed, sums of two folds, rows kept; one layer read, the equation fitted.

    Not counted: matrices of each source where `cluster` is named, batches that passes of our own keep, and rows over `ROWS`.

    Args:
        units: {layer: its number of units, d}.
        kinds: the variables' kinds; "auto" counts as "categorical", which is counted with four levels.
        max_samples: rows that wait, and single rows kept.
        itemsize: bytes of one activation as the model has it.
    """
    p, q = len(kinds), sum(kind == "continuous" for kind in kinds)
    levels = [2 if kind == "binary" else 4 for kind in kinds if kind != "continuous"]
    cells = min(most_cells([kind != "continuous" for kind in kinds]), math.prod(levels))
    groups = 1 + max(cells, sum(levels)) + CONTROLS * BINS
    layers, event = {}, 0
    for name, d in units.items():
        pairs = d**2 if d <= WIDE else d
        sums = 2 * (groups * (q + d) + (1 + cells) * q * (q + d) + pairs)
        layers[name] = max_samples * d * itemsize + 8 * (sums + max_samples * (d + p + CONTROLS + 3))
        summing = 4 * max_samples * (q + d)
        reading = sums + (3 * pairs if d <= WIDE else max_samples * d + 3 * max_samples**2)
        event = max(event, 8 * max(summing, reading))
    columns = 1 + sum(1 if kind in ("binary", "continuous") else 3 for kind in kinds)
    rows = min(ROWS, math.prod(levels)) if not q else ROWS
    return Footprint(layers, event, 8 * ARRAYS * rows * columns, dict(units), max_samples)


def module_units(module: nn.Module) -> int | None:
    """How many units the pooled output of a module has, where its shape tells; None where only a batch will."""
    for attribute in _UNITS:
        found = getattr(module, attribute, None)
        if isinstance(found, int):
            return found
    shape = getattr(module, "normalized_shape", None)  # a LayerNorm's
    return int(shape[-1]) if isinstance(shape, (tuple, list)) and shape else None


def _size(number: int) -> str:
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / _MIB:.0f} MiB"
