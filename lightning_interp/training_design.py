"""The coding of variables while training goes on: levels, scales and cells as they have been seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.functional.coding import MAX_AUTO_LEVELS, Factor, is_discrete
from lightning_interp.functional.unique import unique_rows
from lightning_interp.variables import Variable


class Coded(NamedTuple):
    """A batch's variables, coded.

    Attributes:
        z: `[n, q]`, the columns of the first variable first.
        width: columns of the first variable.
        cell: each sample's cell, int64 `[n]`.
    """

    z: Tensor
    width: int
    cell: Tensor


class TrainingDesign:
    """Codes variables batch by batch.

    A kind left open is decided from the first batch: whole numbers are categorical, others continuous; a discrete variable
    with two levels so far is coded ±½.

    Args:
        variables: the confounder first, then the given ones.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.variables = tuple(variables)
        self._discrete: list[bool] | None = None
        self._counts: dict[tuple[float, ...], int] = {}  # samples of each cell, in the order of their first coming
        self._separable: tuple[int, bool] | None = None  # as of so many cells
        self._sums = torch.zeros(3, len(self.variables), dtype=torch.float64)  # n, mean, Σ(x − mean)² of each variable

    def observe(self, values: Tensor) -> None:
        """Take a batch's raw values `[n, p]` into account.

        Raises:
            VariableError: a variable declared binary would have more than two values; the batch is not counted then.
        """
        if not len(values):
            return
        if self._discrete is None:
            self._discrete = [is_discrete(v.kind, values[:, j], False) for j, v in enumerate(self.variables)]
        for j in self._columns:
            if self.variables[j].kind == "binary":
                self._check_binary(j, values[:, j])
        rows, index = unique_rows(values[:, self._columns].contiguous())
        for key, count in zip(map(tuple, rows.tolist()), torch.bincount(index, minlength=len(rows)).tolist()):
            self._counts[key] = self._counts.get(key, 0) + count
        for j, v in enumerate(self.variables):
            if v.kind == "auto" and j in self._columns and len(self._levels(j)) > MAX_AUTO_LEVELS:
                self._make_continuous(j)
        n, mean, m2 = self._sums
        new_mean, k = values.double().cpu().mean(0), len(values)
        delta = new_mean - mean
        m2 = m2 + ((values.double().cpu() - new_mean) ** 2).sum(0) + delta**2 * n * k / (n + k)
        self._sums = torch.stack([n + k, mean + delta * k / (n + k), m2])

    def _check_binary(self, j: int, column: Tensor) -> None:
        levels = sorted({*self._levels(j), *torch.unique(column).tolist()})
        if len(levels) > 2:
            raise VariableError(
                f"variable '{self.variables[j].name}': `kind='binary'` expects two values, got {len(levels)} "
                f"({', '.join(f'{x:g}' for x in levels[:4])}, …). Use kind='categorical' or kind='continuous'."
            )

    @property
    def discrete(self) -> tuple[bool, ...]:
        """Which variables make cells; empty before the first batch."""
        return tuple(self._discrete or ())

    def settle(self, discrete: Sequence[bool]) -> None:
        """Take over what was found elsewhere, in another process: a variable that is continuous there is so here."""
        for j, (here, there) in enumerate(zip(self.discrete, discrete)):
            if here and not there:
                self._make_continuous(j)

    @property
    def _columns(self) -> list[int]:
        return [j for j, d in enumerate(self._discrete or []) if d]

    def _levels(self, j: int) -> tuple[float, ...]:
        place = self._columns.index(j)
        return tuple(sorted({key[place] for key in self._counts}))

    def _make_continuous(self, j: int) -> None:
        # More levels have come than a categorical variable of unstated kind may have: cells that differ in it alone are one.
        place = self._columns.index(j)
        merged: dict[tuple[float, ...], int] = {}
        for key, count in self._counts.items():
            rest = key[:place] + key[place + 1 :]
            merged[rest] = merged.get(rest, 0) + count
        self._counts = merged
        self._discrete = [d and i != j for i, d in enumerate(self._discrete or [])]

    @property
    def cells(self) -> int:
        """Cells seen so far."""
        return len(self._counts)

    @property
    def rows(self) -> int:
        """Samples seen so far."""
        return sum(self._counts.values())

    @property
    def frequency(self) -> Tensor:
        """Share of each cell among the samples seen so far, float64 `[cells]`."""
        count = torch.tensor(list(self._counts.values()), dtype=torch.float64)
        return count / count.sum()

    def factors(self) -> tuple[Factor, ...] | None:
        """The coding now; None while a variable has shown one value only."""
        out = []
        for j, v in enumerate(self.variables):
            if j in self._columns:
                levels = self._levels(j)
                if len(levels) < 2:
                    return None
                out.append(Factor(v.name, "binary" if len(levels) == 2 else "categorical", j, levels, tuple(map(str, levels))))
                continue
            n, mean, m2 = self._sums[:, j].tolist()
            if m2 <= 0:
                return None
            out.append(Factor(v.name, "continuous", j, center=mean, scale=math.sqrt(m2 / n)))
        return tuple(out)

    def separable(self, factors: Sequence[Factor]) -> bool:
        """Whether the cells seen so far tell the first variable from the others: no column of it is a function of theirs.

        Continuous variables are taken to be told apart.
        """
        known = [f for f in factors if f.discrete]
        if not factors[0].discrete:
            return True
        if self._separable is None or self._separable[0] != len(self._counts):
            keys = torch.tensor(list(self._counts), dtype=torch.float64).view(len(self._counts), -1)
            own, *others = (f.encode(keys[:, i]) for i, f in enumerate(known))
            rest = torch.cat([torch.ones(len(keys), 1, dtype=torch.float64), *others], 1)
            both = torch.cat([rest, own], 1)
            told = int(torch.linalg.matrix_rank(both)) - int(torch.linalg.matrix_rank(rest)) == own.shape[1]
            self._separable = (len(self._counts), told)
        return self._separable[1]

    def encode(self, values: Tensor, factors: Sequence[Factor]) -> Coded:
        """Code raw values `[n, p]` that have been observed."""
        z = torch.cat([f.encode(values[:, f.column]) for f in factors], dim=1)
        rows, index = unique_rows(values[:, self._columns].contiguous())
        place = {key: i for i, key in enumerate(self._counts)}
        ids = torch.tensor([place[key] for key in map(tuple, rows.tolist())], dtype=torch.int64, device=values.device)
        return Coded(z, factors[0].width, ids[index])

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        return {
            "discrete": self._discrete,
            "cells": [[list(key), count] for key, count in self._counts.items()],
            "sums": self._sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            VariableError: the state is of another number of variables.
        """
        if state["sums"].shape[1] != len(self.variables):
            raise VariableError(f"it is of {state['sums'].shape[1]} variables, {len(self.variables)} are given now")
        self._discrete = state["discrete"]
        self._counts = {tuple(key): count for key, count in state["cells"]}
        self._sums = state["sums"]
