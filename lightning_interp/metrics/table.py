"""`OutputTable`: the outputs of a probe set, grouped by variable values, as a metric that merges over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_interp.functional.table import Table
from lightning_interp.processes import states_of_all


class OutputTable(Metric):
    """Accumulates a `Table` of outputs by variable values and source.

    Rows with the same values and source are merged as they come, so a validation set of any length with categorical variables
    takes one row per cell. `compute` gives the table of all ranks, on the CPU, the same bits on each.

    Args:
        variables: number of variables, p.

    Example:
        >>> import torch
        >>> from lightning_interp.functional.table import table
        >>> metric = OutputTable(variables=1)
        >>> metric.update(table(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([[1.0], [2.0], [4.0]])))
        >>> metric.compute().mean.flatten().tolist()
        [1.0, 3.0]
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, variables: int) -> None:
        super().__init__()
        self.variables = variables
        # One packed tensor [r, p + 2c + 4], so that a rank without rows takes part in the same single gather.
        self.add_state("rows", default=[], dist_reduce_fx=_filled)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.rows = [torch.zeros(0, 0, dtype=torch.float64)]

    def update(self, rows: Table | None) -> None:
        """Add rows; None where this process has none."""
        if rows is not None:
            held = self._table()
            self.rows = [_pack(rows.grouped() if held is None else held + rows)]

    def compute(self) -> Table | None:
        """The table of every rank's rows; None if there is none."""
        return self._merged()

    def merged(self) -> Table | None:
        """`compute` without torchmetrics' own ending, which makes tensors of one element scalars."""
        with states_of_all(self, ["rows"]):
            return self._merged()

    def _merged(self) -> Table | None:
        held = self._table()
        return None if held is None else Table(*(part.cpu() for part in held)).grouped()

    def _table(self) -> Table | None:
        packed = torch.cat([r for r in self.rows if r.numel()]) if any(r.numel() for r in self.rows) else None
        return None if packed is None else _unpack(packed, self.variables)


def _filled(parts: list[Tensor]) -> list[Tensor]:
    return [part for part in parts if part.numel()] or parts[:1]


def _pack(t: Table) -> Tensor:
    # The source is an int64: its bits travel as a float64 and come back untouched.
    columns = [t.values, t.source.view(torch.float64)[:, None], t.count[:, None], t.mean, t.m2]
    return torch.cat([*columns, t.correct[:, None], t.scored[:, None]], dim=1)


def _unpack(packed: Tensor, p: int) -> Table:
    c = (packed.shape[1] - p - 4) // 2
    values, source, count, mean, m2, correct, scored = packed.split([p, 1, 1, c, c, 1, 1], dim=1)
    return Table(
        values.contiguous(),
        source.contiguous().view(torch.int64)[:, 0],
        count[:, 0],
        mean.contiguous(),
        m2.contiguous(),
        correct[:, 0],
        scored[:, 0],
    )
