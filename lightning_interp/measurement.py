"""From the statistics of a probe set to the numbers of an `Event`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.events import ByLevel, Effect, Groups, Score, Share
from lightning_interp.functional.coding import Design, Factor, code
from lightning_interp.functional.contribution import Estimate, Fit, RankError, Table, effects, fit
from lightning_interp.functional.direction import drift, pattern
from lightning_interp.functional.groups import group_accuracy
from lightning_interp.functional.moments import Moments, Target, cross
from lightning_interp.functional.outputs import level_spread, magnitude
from lightning_interp.functional.probe import Probe, auroc, balanced_accuracy, held_out_r2, ridge_probe, stack
from lightning_interp.functional.shares import Spread, debiased_share, r_squared, shares, spread
from lightning_interp.functional.weights import Weights, sample_weights
from lightning_interp.metrics.layer import BINS, CONTROLS, LayerSummary, is_cell

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
            f.name: {"kind": f.kind, "levels": list(f.labels), "center": f.center, "scale": f.scale}
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


def by_level(estimate: Estimate, factor: Factor, classes: int) -> ByLevel:
    """An `Estimate` `[m, c]` as an `Effect`, or one per level, class, or both."""
    rows, columns = estimate.value.shape
    named = {}
    for i in range(rows):
        for k in range(columns):
            parts = [factor.labels[i]] if factor.kind == "categorical" else []
            parts += [str(k)] if classes > 1 else []
            named[",".join(parts)] = _effect(estimate, i, k)
    return named if len(named) > 1 or "" not in named else named[""]


def _effect(e: Estimate, i: int, k: int) -> Effect:
    value, se, low, high, df, rv = (_number(part[i, k]) for part in e[:6])
    return Effect(value, low, high, se, df, rv, e.note)


def _number(x: Tensor | float) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None


def contributions(eq: Equation) -> dict[str, Any]:
    """Effects, shares and the intercept, as fields of an `Event`."""
    effect: dict[str, ByLevel] = {}
    size: dict[str, float] = {}
    share: dict[str, Share] = {}
    for name, why in eq.design.unmeasurable.items():
        effect[name], share[name] = Effect(None, note=why), Share(None, note=why)
    if eq.fit is None or eq.spread.total <= 0:
        why = eq.notes[-1] if eq.fit is None else "the output does not vary over the probe set"
        for f in eq.design.factors:
            effect[f.name], share[f.name] = Effect(None, note=why), Share(None, note=why)
        return {"effect": effect, "contribution": share, "intercept": None, "magnitude": size}
    blocks = eq.design.blocks()
    raw = shares(eq.spread, list(blocks.values()))
    classes = eq.rows.mean.shape[1]
    for f, value in zip(eq.design.factors, raw):
        block = slice(blocks[f.name].start + 1, blocks[f.name].stop + 1)
        contrast = torch.zeros(len(f.contrasts()), len(eq.fit.coefficients), dtype=torch.float64)
        contrast[:, block] = f.contrasts()
        estimate = effects(eq.fit, contrast)
        effect[f.name] = by_level(estimate, f, classes)
        per_output = level_spread(estimate.value) if f.kind == "categorical" else estimate.value[0]
        size[f.name] = magnitude(per_output, eq.task)
        share[f.name] = _share(eq, f, value, block, estimate)
    return {
        "effect": effect,
        "contribution": {**share, **_rest(eq)},
        "intercept": float(eq.fit.coefficients[0, 0]) if classes == 1 else None,
        "magnitude": size,
    }


def _share(eq: Equation, f: Factor, value: float, block: slice, estimate: Estimate) -> Share:
    if eq.fit is None or (estimate.note or "").startswith("withheld"):
        return Share(value, note=estimate.note)
    columns = eq.design.blocks()[f.name]
    covariance = eq.fit.covariance(block)
    debiased = debiased_share(eq.spread, columns, eq.fit.coefficients[block], covariance)
    if estimate.value.numel() > 1 or f.width > 1:
        return Share(value, debiased, note=estimate.note)
    low, high = float(estimate.low[0, 0]), float(estimate.high[0, 0])
    unit = float(eq.spread.zz[columns, columns][0, 0]) / eq.spread.total
    bottom = 0.0 if low <= 0 <= high else min(low**2, high**2)
    return Share(value, debiased, min(1.0, bottom * unit), min(1.0, max(low**2, high**2) * unit), estimate.note)


def _rest(eq: Equation) -> dict[str, Share]:
    main = r_squared(eq.spread)
    if not eq.interactions:
        return {"unexplained": Share(1 - main)}
    full = r_squared(spread(torch.cat([eq.z, eq.design.products(eq.z)], 1), eq.rows, eq.weights.row))
    return {"interactions": Share(full - main), "unexplained": Share(1 - full)}


def groups(eq: Equation) -> Groups | None:
    """Accuracy of the cells; None without a target or without discrete variables."""
    if not eq.design.discrete or not float(eq.rows.scored.sum()):
        return None
    names = eq.design.cell_names(eq.weights.cells)
    found = group_accuracy(eq.rows.correct, eq.rows.scored, eq.weights.cell, len(names))
    accuracy = {n: float(a) for n, a in zip(names, found.accuracy) if math.isfinite(float(a))}
    count = {n: int(c) for n, c in zip(names, eq.weights.cell_count)}
    return Groups(accuracy, count, names[found.worst], float(found.accuracy[found.worst]), found.gap)


# --- a layer's numbers ------------------------------------------------------------------------------------------------


def target_of(f: Factor, keys: Tensor, discrete: Sequence[bool], indicators: bool) -> Target:
    """A variable as columns over the groups of a layer's moments.

    Args:
        f: the variable.
        keys: the groups' keys `[g, p + 2]`.
        discrete: which variables make groups.
        indicators: one column per level (binary: of the second level), as a probe predicts; else the columns of z.
    """
    if not f.discrete:
        cell = is_cell(keys, discrete).nonzero().flatten()
        whole = torch.zeros(1, dtype=torch.int64)
        column = [j for j, d in enumerate(discrete) if not d].index(f.column)
        return Target(cell if len(cell) else whole, torch.empty(0), column, f.center, f.scale)
    cell = is_cell(keys, discrete)
    if not cell.any():
        others = [j for j in range(keys.shape[1]) if j != f.column]
        cell = ~keys[:, f.column].isnan() & keys[:, others].isnan().all(1)
    at = cell.nonzero().flatten()
    level = f.level_index(keys[at, f.column])
    return Target(at, _codes(f, indicators)[level])


def _codes(f: Factor, indicators: bool) -> Tensor:
    if not indicators:
        return f.level_codes()
    eye = torch.eye(len(f.levels), dtype=torch.float64)
    return eye[:, 1:] if f.kind == "binary" else eye


def control_targets(f: Factor, eq: Equation, keys: Tensor) -> list[Target]:
    """Random columns at the variable's marginal, one `Target` per control: nothing in the network can know them."""
    quantile = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    x = eq.rows.values[:, f.column]
    order = x.argsort() if not f.discrete else f.level_index(x).argsort(stable=True)
    below = eq.rows.count[order].cumsum(0) / eq.rows.count.sum()
    drawn = x[order][torch.searchsorted(below, quantile).clamp(max=len(x) - 1)]
    codes = _codes(f, True)[f.level_index(drawn)] if f.discrete else f.encode(drawn)
    p = keys.shape[1] - 2
    out = []
    for r in range(CONTROLS):
        at = (keys[:, p] == r).nonzero().flatten()
        out.append(Target(at, codes[keys[at, p + 1].long()]))
    return out


@dataclass(frozen=True)
class LayerResult:
    """What an event says of one layer.

    Attributes:
        scores: {variable: Score}.
        directions: {variable: pattern `[width, d]`}, activation per unit of z.
        residual: covariance of the activation given the variables, `[d, d]`.
    """

    scores: dict[str, Score]
    directions: dict[str, Tensor]
    residual: Tensor


def layer_result(
    eq: Equation,
    layer: LayerSummary,
    discrete: Sequence[bool],
    decodability: bool,
    before: Mapping[str, Tensor],
) -> LayerResult:
    """Decodability, directions and drift of every variable at a layer.

    Args:
        eq: the event's equation.
        layer: the layer's statistics.
        discrete: which variables make groups in them.
        decodability: whether probes are wanted.
        before: {variable: direction at the last event}.
    """
    directions, residual = _directions(eq, layer, discrete)
    scores = _scores(eq, layer, discrete) if decodability else {}
    for name, why in eq.design.unmeasurable.items():
        if decodability:
            scores[name] = Score(None, note=why)
    for name, now in directions.items():
        if name in scores and name in before and before[name].shape == now.shape:
            moved = drift(now, before[name])
            scores[name] = replace(scores[name], drift=moved if math.isfinite(moved) else None)
    return LayerResult(scores, directions, residual)


def _directions(eq: Equation, layer: LayerSummary, discrete: Sequence[bool]) -> tuple[dict[str, Tensor], Tensor]:
    keys, m = layer.total(discrete)
    parts, natural = [], []
    for f in eq.design.factors:
        target = target_of(f, keys, discrete, indicators=False)
        parts.append(cross(m, target, _group_weights(eq, keys[target.groups])).covariance)
        natural.append(cross(m, target).covariance)
    hh = m.gram / m.count[0]
    if not parts:
        return {}, hh
    flat = spread(eq.z, eq.rows, torch.full_like(eq.weights.row, 1.0 / eq.n)).zz
    zh = torch.cat(natural)
    explained = zh.T @ torch.linalg.lstsq(flat, zh, driver="gelsd").solution
    residual = (hh - explained) * (eq.n / max(1, eq.n - 1 - len(zh)))
    if eq.fit is None:
        return {}, residual
    b = pattern(eq.spread.zz, torch.cat(parts))
    return {f.name: b[block] for f, block in zip(eq.design.factors, eq.design.blocks().values())}, residual


def _group_weights(eq: Equation, keys: Tensor) -> Tensor | None:
    """Weight of one sample of each cell; None where the groups are no cells, which natural weights alone allow."""
    if eq.weights.mode == "natural" or not eq.design.discrete:
        return None
    levels = torch.stack([f.level_index(keys[:, f.column]) for f in eq.design.discrete], 1)
    match = (levels.unsqueeze(1) == eq.weights.cells.unsqueeze(0)).all(2).to(torch.uint8).argmax(1)
    return eq.weights.cell_weight[match]


def _scores(eq: Equation, layer: LayerSummary, discrete: Sequence[bool]) -> dict[str, Score]:
    if min(float(m.count[0]) for m in layer.folds) < 2:
        why = "decodability withheld: fewer than 2 samples in a fold"
        return {f.name: Score(None, note=why) for f in eq.design.factors}
    wanted: list[Factor] = []
    blocks: list[slice] = []
    controls: list[slice] = []
    start = 0
    for f in eq.design.factors:
        width = len(f.levels) if f.kind == "categorical" else 1
        for r in range(1 + CONTROLS):
            (blocks if r == 0 else controls).append(slice(start, start + width))
            start += width
        wanted.append(f)
    sides = []
    for keys, m in zip(layer.keys, layer.folds):
        targets = []
        for f in wanted:
            targets += [target_of(f, keys, discrete, indicators=True), *control_targets(f, eq, keys)]
        sides.append((m, stack([cross(m, t) for t in targets])))
    (a, ca), (b, cb) = sides
    probes = (ridge_probe(a, ca), ridge_probe(b, cb))
    real = _mean_of(held_out_r2(probes[0], b, cb, blocks), held_out_r2(probes[1], a, ca, blocks))
    noise = _mean_of(held_out_r2(probes[0], b, cb, controls), held_out_r2(probes[1], a, ca, controls))
    out = {}
    for i, f in enumerate(wanted):
        r2, chance = float(real[i]), noise[i * CONTROLS : (i + 1) * CONTROLS].nanmean()
        if not math.isfinite(r2):
            out[f.name] = Score(None, note="withheld: the variable is constant in one half of the samples")
            continue
        read = _classification(f, layer, probes, blocks[i], discrete) if f.discrete else (None, None)
        out[f.name] = Score(r2, r2 - max(0.0, float(chance.nan_to_num())), *read)
    return out


def _mean_of(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2


def _classification(
    f: Factor, layer: LayerSummary, probes: tuple[Probe, Probe], block: slice, discrete: Sequence[bool]
) -> tuple[float | None, float | None]:
    """Balanced accuracy and AUROC on the kept rows, each half read by the probe of the other."""
    accuracy, area = [], []
    for fold, probe in enumerate(probes):
        held = layer.kept_second != bool(fold)
        level = f.level_index(layer.kept_values[held, f.column])
        only = Probe(probe.weight[:, block], probe.bias[block])
        scores = only.scores(layer.kept[held])
        midpoint = _midpoint(f, layer.keys[fold], layer.folds[fold], only, discrete)
        accuracy.append(balanced_accuracy(scores, level, midpoint))
        positive = _codes(f, True)[level] > 0
        area.append(auroc(scores, positive).nanmean())
    return _number(torch.stack(accuracy).mean()), _number(torch.stack(area).mean())


def _midpoint(f: Factor, keys: Tensor, m: Moments, probe: Probe, discrete: Sequence[bool]) -> Tensor:
    target = target_of(f, keys, discrete, indicators=True)
    mass = m.count[target.groups].unsqueeze(1)
    inside, outside = mass * target.codes, mass * (1 - target.codes)
    hidden = m.hidden[target.groups]
    at = (inside.T @ hidden) / inside.sum(0).clamp_min(1).unsqueeze(1)
    rest = (outside.T @ hidden) / outside.sum(0).clamp_min(1).unsqueeze(1)
    return ((at + rest) / 2 * probe.weight.T).sum(1) + probe.bias
