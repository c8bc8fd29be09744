"""Fitting what is taken out, and how well it is gone on rows that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch

from lightning_interp.cell_moments import CellMoments
from lightning_interp.erasure import Coding, coding_of, fit_eraser, readable
from lightning_interp.errors import VariableError
from lightning_interp.functional.erasure import Eraser, erased, leace, net
from lightning_interp.processes import gathered
from lightning_interp.variables import Variable

Fit = Callable[[CellMoments, Coding], Eraser]


class Fitted(NamedTuple):
    """An eraser fitted to all rows.

    Attributes:
        eraser: of the activation's units.
        weights: "balanced" or "natural".
        guardedness: how well a linear probe reads the variable, before and after, on rows that the eraser was not fitted to.
    """

    eraser: Eraser
    weights: str
    guardedness: dict[str, Any]


def least_edit(ridge: float) -> Fit:
    """LEACE: the smallest edit of the activation."""
    return lambda m, coding: fit_eraser(m, coding, ridge)


def pattern_only(m: CellMoments, coding: Coding) -> Eraser:
    """The orthogonal projection off the variable's multivariate pattern: the smallest edit of the weights that read it."""
    s = coding.second(m)
    if s is None:
        raise VariableError("a cell has too few rows")
    size = s.hh.diagonal().mean().clamp_min(torch.finfo(s.hh.dtype).tiny)
    return leace(torch.eye(len(s.h), dtype=s.hh.dtype) * size, net(s, coding.confounder)[1].T, s.h)


def fit(quarters: Sequence[CellMoments], variables: Sequence[Variable], how: Fit) -> Fitted:
    """Fit to all rows; measure with erasers fitted to either half on the other.

    Args:
        quarters: the rows' moments, in four parts.
        variables: the variable to take out first.
        how: gives the eraser.

    Raises:
        VariableError: the variable is constant, or the given ones leave nothing of it.
    """
    total = reduce(add, quarters)
    try:
        coding = coding_of(variables, total)
        eraser = how(total, coding)
    except VariableError as problem:
        raise VariableError(f"'{variables[0].name}' given {[v.name for v in variables[1:]]}: {problem}.") from problem
    if eraser.rank == 0:
        raise VariableError(f"'{variables[0].name}' is not in this activation: there is nothing to take out.")
    eraser = gathered(eraser)[0]  # the first process's, so that all write the same bits
    return Fitted(eraser, coding.weights, _guardedness(quarters, coding, how))


def _guardedness(quarters: Sequence[CellMoments], coding: Coding, how: Fit) -> dict[str, Any]:
    found: dict[str, list[float]] = {"before": [], "after": []}
    for mine, theirs in ((quarters[:2], quarters[2:]), (quarters[2:], quarters[:2])):
        try:
            eraser = how(mine[0] + mine[1], coding)
            left = [q._replace(moments=erased(q.moments, eraser)) for q in theirs]
            scores = readable(coding, theirs), readable(coding, left)
        except (VariableError, RuntimeError):  # in so few rows it goes with the given ones, or cells are missing
            continue
        if scores[0] is not None and scores[1] is not None:
            found["before"].append(scores[0])
            found["after"].append(scores[1])
    means = {when: sum(values) / len(values) if values else None for when, values in found.items()}
    note = "cross-fitted R² of a linear probe on held-out rows; the eraser was fitted to the other half, then anew to all rows"
    return {**means, "weights": coding.weights, "note": note if found["after"] else "withheld: too few rows in a quarter"}


def random_eraser(eraser: Eraser, seed: int) -> Eraser:
    """An orthogonal projection off as many random directions, about the same mean."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(eraser.mean), eraser.rank, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(drawn)[0].to(eraser.mean)
    return Eraser(eraser.mean, q, q.T.contiguous())
