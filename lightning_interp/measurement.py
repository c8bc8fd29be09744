"""From the statistics of a probe set to the numbers of an `Event`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.events import ByLevel, Effect, Groups, Share
from lightning_interp.functional.coding import Design, Factor, code
from lightning_interp.functional.contribution import Estimate, Fit, RankError, effects, fit
from lightning_interp.functional.groups import group_accuracy
from lightning_interp.functional.outputs import level_spread, magnitude
from lightning_interp.functional.shares import Spread, debiased_share, r_squared, shares, spread
from lightning_interp.functional.table import Table, group_sum
from lightning_interp.functional.weights import Weights, sample_weights

MAX_NAMED = 256  # cells whose accuracy is given one by one
_AT_ONCE = 2**23  # contrasts × rows, 64 MiB
_MIN_FOR_ALIAS = 30  # below this, two variables may coincide by chance


@dataclass(frozen=True)
class Equation:
    """The outputs of a probe set, explained by its variables.

    Attributes:
        design: the coding.
        rows: the outputs.
        weights: as used.
        z: coded rows `[r, q]`.
        fit: the regression, or None where it could not be had.
        spread: second moments of z and outputs.
        task: "binary", "multiclass", "multilabel" or "regression".
        interactions: whether two-way products were added.
        clustered: whether samples share sources.
        notes: what was decided or withheld.
    """

    design: Design
    rows: Table
    weights: Weights
    z: Tensor
    fit: Fit | None
    spread: Spread
    task: str
    interactions: bool
    clustered: bool
    notes: tuple[str, ...]

    @property
    def n(self) -> int:
        """Samples in the probe set."""
        return int(self.rows.count.sum())

    def coding(self) -> dict[str, dict[str, Any]]:
        """How each variable was coded, in plain types."""
        return {
            f.name: {
                "kind": f.kind,
                "levels": list(f.labels),
                "values": list(f.levels),
                "center": f.center,
                "scale": f.scale,
            }
            for f in self.design.factors
        }


def equation(
    rows: Table,
    names: Sequence[str],
    kinds: Sequence[str],
    level_names: Mapping[str, Mapping[float, str]],
    task: str,
    weights: str = "balanced",
    interactions: bool = False,
    clustered: bool = False,
) -> Equation:
    """Code the variables, weigh the rows, fit the equation.

    Raises:
        VariableError: a variable cannot be coded, or cannot be told apart from another.
    """
    design = code(rows.values, rows.count, names, kinds, level_names)
    return _fitted(design, rows, weights, task, interactions, clustered)


def refitted(eq: Equation, rows: Table) -> Equation:
    """The equation fitted to other outputs, coded as it is, so that effects can be compared.

    Args:
        eq: the event's equation.
        rows: outputs of samples of the same probe set.

    Raises:
        VariableError: two variables cannot be told apart on these rows.
    """
    return _fitted(eq.design, rows, eq.weights.mode, eq.task, eq.interactions, eq.clustered)


def _fitted(design: Design, rows: Table, weights: str, task: str, interactions: bool, clustered: bool) -> Equation:
    weighed = sample_weights(design, rows.values, rows.count, weights)
    z = design.encode(rows.values)
    notes = [*design.unmeasurable.values(), *([weighed.note] if weighed.note else [])]
    fitted, crossed = None, False
    n, parameters = float(rows.count.sum()), 1 + design.width
    if n <= parameters:
        notes.append(f"effects withheld: {n:.0f} samples for {parameters} parameters")
    else:
        try:
            fitted = fit(z, rows, weighed, clustered)
            if interactions:
                fitted = fit(torch.cat([z, design.products(z)], 1), rows, weighed, clustered)
                crossed = True
        except RankError as error:
            if fitted is not None:
                notes.append("interactions withheld: some products of variables are linearly dependent")
            elif n >= _MIN_FOR_ALIAS:
                raise VariableError(_alias(design, z, error)) from error
            else:
                notes.append(f"effects withheld: {_alias(design, z, error)}")
    s = spread(z, rows, weighed.row)
    return Equation(design, rows, weighed, z, fitted, s, task, crossed, clustered, tuple(notes))


def _alias(design: Design, z: Tensor, error: RankError) -> str:
    blocks = design.blocks()
    involved = [f for f in design.factors if any(c in error.involved for c in range(*blocks[f.name].indices(z.shape[1])))]
    for i, a in enumerate(involved):
        for b in involved[i + 1 :]:
            pair = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z[:, blocks[a.name]], z[:, blocks[b.name]]], 1)
            if int(torch.linalg.matrix_rank(pair)) < pair.shape[1]:
                one, other = (b, a) if b.width <= a.width else (a, b)
                return (
                    f"variables '{a.name}' and '{b.name}' cannot be told apart: '{one.name}' is a function of "
                    f"'{other.name}' over the probe set. Leave one of them out, or probe on data where they differ."
                )
    names = ", ".join(f"'{f.name}'" for f in involved or design.factors)
    return f"variables {names} are linearly dependent over the probe set. Leave one of them out."


# --- the equation's numbers -------------------------------------------------------------------------------------------


def row_name(factor: Factor, level: int, output: int, classes: int) -> str:
    """What one number of a variable is called: its level if categorical, its class if there are several, else nothing."""
    parts = [factor.labels[level]] if factor.kind == "categorical" else []
    return ",".join([*parts, *([str(output)] if classes > 1 else [])])


def by_level(estimate: Estimate, factor: Factor, classes: int) -> ByLevel:
    """An `Estimate` `[m, c]` as an `Effect`, or one per level, class, or both."""
    rows, columns = estimate.value.shape
    named = {}
    for i in range(rows):
        for k in range(columns):
            named[row_name(factor, i, k, classes)] = _effect(estimate, i, k)
    return named if len(named) > 1 or "" not in named else named[""]


def _effect(e: Estimate, i: int, k: int) -> Effect:
    value, se, low, high, df, rv = (number(part[i, k]) for part in e[:6])
    return Effect(value, low, high, se, df, rv, e.note)


def number(x: Tensor | float) -> float | None:
    """A number for an event; None where it is not finite."""
    value = float(x)
    return value if math.isfinite(value) else None


def contributions(eq: Equation) -> dict[str, Any]:
    """Effects, shares and the intercept, as fields of an `Event`."""
    effect: dict[str, ByLevel] = {}
    size: dict[str, float] = {}
    share: dict[str, Share] = {}
    for name, why in eq.design.unmeasurable.items():
        effect[name], share[name] = Effect(None, note=why), Share(None, note=why)
    mean_square = float((eq.rows.count.unsqueeze(1) * eq.rows.mean**2).sum()) / eq.n
    if eq.fit is None or eq.spread.total <= 1e-24 * mean_square:  # to rounding
        why = eq.notes[-1] if eq.fit is None else "the output does not vary over the probe set"
        for f in eq.design.factors:
            effect[f.name], share[f.name] = Effect(None, note=why), Share(None, note=why)
        return {"effect": effect, "contribution": share, "intercept": None, "magnitude": size}
    blocks = eq.design.blocks()
    raw = shares(eq.spread, list(blocks.values()))
    classes = eq.rows.mean.shape[1]
    for (f, estimate), value in zip(_estimates(eq, eq.fit), raw):
        effect[f.name] = by_level(estimate, f, classes)
        per_output = level_spread(estimate.value) if f.kind == "categorical" else estimate.value[0]
        size[f.name] = magnitude(per_output, eq.task)
        share[f.name] = _share(eq, f, value, blocks[f.name], estimate)
    return {
        "effect": effect,
        "contribution": {**share, **_rest(eq, math.fsum(raw))},
        "intercept": float(eq.fit.coefficients[0, 0]) if classes == 1 else None,
        "magnitude": size,
    }


def _estimates(eq: Equation, fitted: Fit) -> Iterator[tuple[Factor, Estimate]]:
    """Every variable's effects: many contrasts at a time, for each alone reads all of the influence again."""
    factors = eq.design.factors
    widths = [len(f.contrasts()) for f in factors]
    most = max(1, _AT_ONCE // max(1, len(eq.z)))
    start = 0
    while start < len(factors):
        stop, rows = start + 1, widths[start]
        while stop < len(factors) and rows + widths[stop] <= most:
            rows += widths[stop]
            stop += 1
        some = factors[start:stop]
        lift = torch.block_diag(*(f.contrasts() for f in some))
        before = 1 + sum(f.width for f in factors[:start])
        wanted = torch.zeros(len(lift), len(fitted.coefficients), dtype=torch.float64)
        wanted[:, before : before + lift.shape[1]] = lift
        found = effects(fitted, wanted)
        numbers: list[tuple[Tensor, ...]] = [part.split(widths[start:stop]) for part in found[:6]]
        for i, f in enumerate(some):
            value, se, low, high, df, robustness = (part[i] for part in numbers)
            yield f, Estimate(value, se, low, high, df, robustness, found.note)
        start = stop


def contrast(eq: Equation, f: Factor) -> Tensor:
    """What turns the equation's coefficients into a variable's effects, `[m, 1 + q]`."""
    block = eq.design.blocks()[f.name]
    width = eq.z.shape[1] if eq.fit is None else len(eq.fit.coefficients) - 1
    out = torch.zeros(len(f.contrasts()), 1 + width, dtype=torch.float64)
    out[:, block.start + 1 : block.stop + 1] = f.contrasts()
    return out


def _share(eq: Equation, f: Factor, value: float, columns: slice, estimate: Estimate) -> Share:
    if eq.fit is None or (estimate.note or "").startswith("withheld"):
        return Share(value, note=estimate.note)
    block = slice(columns.start + 1, columns.stop + 1)
    covariance = eq.fit.covariance(block)
    debiased = debiased_share(eq.spread, columns, eq.fit.coefficients[block], covariance)
    if estimate.value.numel() > 1 or f.width > 1:
        return Share(value, debiased, note=estimate.note)
    low, high = float(estimate.low[0, 0]), float(estimate.high[0, 0])
    unit = float(eq.spread.zz[columns, columns][0, 0]) / eq.spread.total
    bottom = 0.0 if low <= 0 <= high else min(low**2, high**2)
    return Share(value, debiased, min(1.0, bottom * unit), min(1.0, max(low**2, high**2) * unit), estimate.note)


def _rest(eq: Equation, main: float) -> dict[str, Share]:
    if not eq.interactions:
        return {"unexplained": Share(1 - main)}
    full = r_squared(spread(torch.cat([eq.z, eq.design.products(eq.z)], 1), eq.rows, eq.weights.row))
    return {"interactions": Share(full - main), "unexplained": Share(1 - full)}


def groups(eq: Equation) -> Groups | None:
    """Accuracy of the cells, of single levels where there are too many; None without a target or discrete variables."""
    if not eq.design.discrete or not float(eq.rows.scored.sum()):
        return None
    cell = eq.weights.cell
    correct, scored, count = eq.rows.correct, eq.rows.scored, eq.rows.count
    if by_level_only(eq):
        names = [f"{f.name}={label}" for f in eq.design.discrete for label in f.labels]
        levels = [f.level_index(eq.rows.values[:, f.column]) for f in eq.design.discrete]
        starts = torch.tensor([0, *(len(f.labels) for f in eq.design.discrete)]).cumsum(0)
        cell = torch.cat([level + start for level, start in zip(levels, starts)])
        correct, scored, count = (part.repeat(len(levels)) for part in (correct, scored, count))
    else:
        names = eq.design.cell_names(eq.weights.cells)
    found = group_accuracy(correct, scored, cell, len(names))
    accuracy = {n: float(a) for n, a in zip(names, found.accuracy) if math.isfinite(float(a))}
    sizes = dict(zip(names, group_sum(count, cell, len(names)).long().tolist()))
    return Groups(accuracy, sizes, names[found.worst], float(found.accuracy[found.worst]), found.gap)


def by_level_only(eq: Equation) -> bool:
    """Whether there are too many cells to name."""
    return len(eq.weights.cells) > MAX_NAMED
