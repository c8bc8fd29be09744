"""Outputs grouped by identical variable values: what the equation needs of any number of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.unique import unique_rows


class Table(NamedTuple):
    """Outputs grouped by identical variable values and source.

    Attributes:
        values: raw values of the variables, float64 `[r, p]`.
        source: id of the source that the samples share, int64 `[r]`; all zero if none was named.
        count: samples in each row, `[r]`.
        mean: mean output, `[r, c]`.
        m2: sum of squared deviations from it, `[r, c]`.
        correct: samples that the model gets right, `[r]`.
        scored: samples whose target is known, `[r]`.
    """

    values: Tensor
    source: Tensor
    count: Tensor  # type: ignore[assignment]  # the tuple's method of that name is of no use here
    mean: Tensor
    m2: Tensor
    correct: Tensor
    scored: Tensor

    def grouped(self) -> Table:
        """The same statistics with one row per distinct (values, source), in sorted order."""
        key = torch.cat([self.values, self.source.unsqueeze(1).view(torch.float64)], dim=1)
        _, row = unique_rows(key)
        groups = int(row.max()) + 1 if len(row) else 0
        first = torch.zeros(groups, dtype=torch.int64, device=row.device)
        first.scatter_(0, row, torch.arange(len(row), device=row.device))
        count = group_sum(self.count, row, groups)
        mean = group_sum(self.count.unsqueeze(1) * self.mean, row, groups) / count.unsqueeze(1)
        m2 = group_sum(self.m2 + self.count.unsqueeze(1) * (self.mean - mean[row]) ** 2, row, groups)
        return Table(
            self.values[first], self.source[first], count, mean, m2,
            group_sum(self.correct, row, groups), group_sum(self.scored, row, groups),
        )  # fmt: skip

    def __add__(self, other: Table) -> Table:  # type: ignore[override]  # merging, not joining tuples
        """Both tables' samples together."""
        return Table(*(torch.cat([a, b]) for a, b in zip(self, other))).grouped()


def table(
    values: Tensor,
    output: Tensor,
    source: Tensor | None = None,
    correct: Tensor | None = None,
    scored: Tensor | None = None,
) -> Table:
    """The `Table` of single samples.

    Args:
        values: raw values `[n, p]`.
        output: what is explained, `[n, c]`.
        source: ids of shared sources, int64 `[n]`.
        correct: whether the model is right, `[n]` in 0…1.
        scored: whether the target is known, `[n]`.

    Returns:
        A `Table` with one row per distinct (values, source).
    """
    n = len(values)
    zero = torch.zeros(n, dtype=torch.float64, device=values.device)
    return Table(
        values.double(),
        zero.long() if source is None else source,
        zero + 1,
        output.double(),
        torch.zeros_like(output, dtype=torch.float64),
        zero if correct is None else correct.double(),
        (zero if correct is None else zero + 1) if scored is None else scored.double(),
    ).grouped()


def group_sum(x: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the rows of `x` `[n, ...]` in each of `size` groups, `[size, ...]`."""
    return torch.zeros(size, *x.shape[1:], dtype=x.dtype, device=x.device).index_add_(0, index, x)
