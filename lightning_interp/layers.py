"""What an event says of a layer: where it holds each variable, and how well it can be read there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.events import Score
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.direction import drift, pattern
from lightning_interp.functional.kernel_probe import kernel_probe, row_products
from lightning_interp.functional.moments import Cross, Moments, Target, cross
from lightning_interp.functional.probe import (
    Probe,
    auroc,
    balanced_accuracy,
    block_r2,
    held_out_products,
    held_out_r2,
    ridge_probe,
)
from lightning_interp.functional.shares import spread
from lightning_interp.measurement import Equation, number
from lightning_interp.metrics.layer import BINS, CONTROLS, LayerSummary


@dataclass(frozen=True)
class LayerResult:
    """What an event says of one layer.

    Attributes:
        scores: {variable: Score}.
        directions: {variable: pattern `[width, d]`}, activation per unit of z.
        summary: the layer's statistics.
        discrete: which variables make its groups.
        notes: what was measured otherwise than usual.
    """

    scores: dict[str, Score]
    directions: dict[str, Tensor]
    summary: LayerSummary
    discrete: tuple[bool, ...]
    notes: tuple[str, ...] = ()


def indicator_codes(f: Factor) -> Tensor:
    """The columns that a probe predicts, by level: one per level, or for a binary variable that of the second level."""
    eye = torch.eye(len(f.levels), dtype=torch.float64)
    return eye[:, 1:] if f.kind == "binary" else eye


class Groups:
    """Which groups of a layer's moments hold the values of each variable.

    Args:
        keys: the groups' keys `[g, p + 2]`.
        m: the moments.
        discrete: which variables make groups.

    Attributes:
        keys: as given.
        crossed: the groups over which continuous variables are summed: the cells, or all rows where these have no products.
        by_level: whether discrete variables have levels of their own, and no joint cells.
    """

    def __init__(self, keys: Tensor, m: Moments, discrete: Sequence[bool]) -> None:
        self.keys = keys
        self.by_level = len(m.cross) == 1 and any(discrete)
        self.crossed = torch.arange(1, len(m.cross)) if len(m.cross) > 1 else torch.zeros(1, dtype=torch.int64)
        self._continuous = {j: i for i, j in enumerate(j for j, d in enumerate(discrete) if not d)}
        self._levels: list[Tensor] = []
        if self.by_level:
            group, column = (~keys[:, : len(discrete)].isnan()).nonzero().unbind(1)
            self._levels = list(
                group[column.argsort(stable=True)].split(torch.bincount(column, minlength=len(discrete)).tolist())
            )

    def target(self, f: Factor, indicators: bool) -> Target:
        """A variable as columns over the groups.

        Args:
            f: the variable.
            indicators: the columns that a probe predicts; else the columns of z.
        """
        if not f.discrete:
            return Target(self.crossed, torch.empty(0), self._continuous[f.column], f.center, f.scale)
        at = self._levels[f.column] if self.by_level else self.crossed
        codes = indicator_codes(f) if indicators else f.level_codes()
        return Target(at, codes[f.level_index(self.keys[at, f.column])])


def predicted(f: Factor, values: Tensor) -> Tensor:
    """The columns that a probe predicts, at raw values `[n]`, `[n, t]`."""
    return indicator_codes(f)[f.level_index(values)] if f.discrete else f.encode(values)


class Controls:
    """Random columns at the variables' marginals: nothing in the network can know them.

    A control takes one of `BINS` values by the sample's bin, the same bins for all variables. So the columns of a thousand
    variables lie in the span of the bins' indicators, and no more probes are fitted than there are bins.

    Attributes:
        basis: the columns that probes are fitted to, by bin, `[BINS, b]`: those of the variables where they are fewer, else the
            indicators of the bins.
        mixture: each variable's columns in terms of them, `[b, t]`.
    """

    def __init__(self, eq: Equation) -> None:
        columns = torch.cat([self._column(f, eq) for f in eq.design.factors], dim=1)
        eye = torch.eye(min(BINS, columns.shape[1]), dtype=torch.float64)
        self.basis, self.mixture = (columns, eye) if columns.shape[1] <= BINS else (eye, columns)

    @staticmethod
    def _column(f: Factor, eq: Equation) -> Tensor:
        quantile = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        x = eq.rows.values[:, f.column]
        order = f.level_index(x).argsort(stable=True) if f.discrete else x.argsort()
        below = eq.rows.count[order].cumsum(0) / eq.rows.count.sum()
        return predicted(f, x[order][torch.searchsorted(below, quantile).clamp(max=len(x) - 1)])

    def r2(self, missed: Sequence[Tensor], total: Sequence[Tensor], blocks: Sequence[slice]) -> Tensor:
        """R² of every control of every variable, `[variables, CONTROLS]`; NaN where it does not vary.

        Args:
            missed: for each control, mean products of the errors of the basis, `[b, b]`.
            total: of its deviations from its mean, `[b, b]`.
            blocks: columns of each variable.
        """
        left, whole = (
            torch.stack([(self.mixture * (one @ self.mixture)).sum(0) for one in parts], 1) for parts in (missed, total)
        )
        return block_r2(left, whole, blocks)


class FoldTargets:
    """All variables and their controls as columns over one fold's groups; layers with the same rows share it.

    Attributes:
        blocks: columns of each variable.
        controls: columns of each control's basis, which come after them.
        spread: second moments of each control's basis, `[b, b]`.
        middle: {discrete variable: the groups, and their weights in the activation half way between a level and the rest
            `[t, k]`}.
    """

    def __init__(self, eq: Equation, keys: Tensor, m: Moments, discrete: Sequence[bool], controls: Controls) -> None:
        groups, start = Groups(keys, m, discrete), 0
        self.blocks: list[slice] = []
        self.controls: list[slice] = []
        self.spread: list[Tensor] = []
        self.middle: dict[str, tuple[Tensor, Tensor]] = {}
        self._continuous: list[tuple[int, Target]] = []
        crosses, entries = [], []
        bare = m._replace(mean=m.mean[:, : m.columns], cross=m.cross[:, :, : m.columns])  # without the activation
        for f in eq.design.factors:
            t = groups.target(f, indicators=True)
            crosses.append(cross(bare, t))
            if f.discrete:
                self.middle[f.name] = t.groups, _middle(t, m.count)
                entries.append(_entries(start, t, m.count))
            else:
                self._continuous.append((start, t))
            self.blocks.append(slice(start, start + len(crosses[-1].mean)))
            start = self.blocks[-1].stop
        p = keys.shape[1] - 2
        for r in range(CONTROLS):
            at = (keys[:, p] == r).nonzero().flatten()
            t = Target(at, controls.basis[keys[at, p + 1].long()])
            crosses.append(cross(bare, t))
            entries.append(_entries(start, t, m.count))
            codes = t.codes - crosses[-1].mean
            self.spread.append(codes.T @ ((m.count[at] / m.count[0]).unsqueeze(1) * codes))
            self.controls.append(slice(start, start + len(crosses[-1].mean)))
            start = self.controls[-1].stop
        self._mean, self._variance = (torch.cat([c[i] for c in crosses]) for i in (0, 1))
        # Covariance with the activation as a matrix over groups: Σ_g n_g/n (code_g − mean)(h̄_g − h̄).
        place, value = (torch.cat(parts, dim=-1) for parts in zip(*entries))
        self._matrix = torch.zeros(start, len(keys), dtype=torch.float64)
        self._matrix[place[0], place[1]] = value - self._mean[place[0]] * (m.count / m.count[0])[place[1]]

    def of(self, m: Moments) -> Cross:
        """Second moments of all columns with a layer's activation."""
        covariance = self._matrix @ (m.hidden - m.hidden[0])
        for row, t in self._continuous:
            covariance[row] = m.cross[0, t.column, m.columns :] / (m.count[0] * t.scale)
        return Cross(self._mean, self._variance, covariance)


class HeldOut(NamedTuple):
    """Kept rows that a fold's probe did not see.

    Attributes:
        rows: their places among the kept rows, int64 `[m]`.
        level: {variable: level index `[m]`} of the discrete ones.
        positive: whether each column that a probe predicts is 1, of all discrete variables side by side, bool `[m, t]`.
    """

    rows: Tensor
    level: dict[str, Tensor]
    positive: Tensor


def _entries(start: int, target: Target, count: Tensor) -> tuple[Tensor, Tensor]:
    """Where the codes of a target stand in a matrix of columns × groups, and n_g/n·code."""
    k, t = target.codes.shape
    column = torch.arange(start, start + t).repeat(k)
    place = torch.stack([column, target.groups.repeat_interleave(t)])
    return place, ((count[target.groups] / count[0]).unsqueeze(1) * target.codes).flatten()


def _middle(target: Target, count: Tensor) -> Tensor:
    mass = count[target.groups].unsqueeze(1)
    inside, outside = mass * target.codes, mass * (1 - target.codes)
    return (inside / inside.sum(0).clamp_min(1) + outside / outside.sum(0).clamp_min(1)).T / 2


class Reading(NamedTuple):
    """What cross-fitted probes of all variables read, whichever way they are had.

    Attributes:
        r2: of each variable, `[p]`.
        noise: mean R² of its controls, not under 0, `[p]`.
        scores: for each fold whose probe it is, predictions for the kept rows outside it, of the columns of the discrete
            variables, `[m, t]`.
        middle: for each fold, the prediction of each of them half way between its level and the rest, `[t]`.
    """

    r2: Tensor
    noise: Tensor
    scores: list[Tensor]
    middle: list[Tensor]


class LayerReader:
    """Reads layers against an event's equation; what layers share is worked out once.

    Args:
        eq: the event's equation.
        discrete: which variables make groups in the layers' statistics.
    """

    def __init__(self, eq: Equation, discrete: Sequence[bool]) -> None:
        self.eq = eq
        self.discrete = list(discrete)
        self._controls: Controls | None = None
        self._folds: dict[bytes, FoldTargets] = {}
        self._kept: tuple[tuple[Tensor, Tensor], list[HeldOut]] | None = None

    def read(self, layer: LayerSummary, decodability: bool, before: Mapping[str, Tensor]) -> LayerResult:
        """Decodability, directions and drift of every variable at a layer.

        Args:
            layer: the layer's statistics.
            decodability: whether probes are wanted.
            before: {variable: direction at the last event}.
        """
        directions, notes = self._directions(layer)
        scores = self._scores(layer) if decodability else {}
        for name, now in directions.items():
            if name in scores and name in before and before[name].shape == now.shape:
                moved = drift(now, before[name])
                scores[name] = replace(scores[name], drift=moved if math.isfinite(moved) else None)
        if decodability:
            scores |= {name: Score(None, note=why) for name, why in self.eq.design.unmeasurable.items()}
        if layer.wide:
            n = int(sum(float(m.count[0]) for m in layer.folds))
            notes.append(f"{layer.kept.shape[1]} units, probes and erasers from {len(layer.kept)} kept samples of {n}")
        return LayerResult(scores, directions, layer, tuple(self.discrete), tuple(notes))

    # --- directions ---------------------------------------------------------------------------------------------------

    def _directions(self, layer: LayerSummary) -> tuple[dict[str, Tensor], list[str]]:
        eq = self.eq
        notes: list[str] = []
        if eq.fit is None or not eq.design.factors:
            return {}, notes
        keys, m = layer.total(self.discrete)
        groups, zz, weight = Groups(keys, m, self.discrete), eq.spread.zz, None
        if eq.weights.mode == "balanced" and eq.design.discrete and groups.by_level:
            notes.append("directions under natural weights: too many cells for so many continuous variables")
            zz = spread(eq.z, eq.rows, torch.ones_like(eq.rows.count)).zz
        elif eq.weights.mode == "balanced" and eq.design.discrete:
            weight = eq.weights.cell_weight[eq.weights.locate(eq.design, keys[groups.crossed])]
        targets = [groups.target(f, indicators=False) for f in eq.design.factors]
        b = pattern(zz, torch.cat([cross(m, t, weight).covariance for t in targets]))
        return {f.name: b[block] for f, block in zip(eq.design.factors, eq.design.blocks().values())}, notes

    # --- decodability -------------------------------------------------------------------------------------------------

    def _scores(self, layer: LayerSummary) -> dict[str, Score]:
        factors = self.eq.design.factors
        halves = [float(m.count[0]) for m in layer.folds]
        if layer.wide:
            halves = torch.bincount(layer.kept_second.long(), minlength=2).tolist()
        if min(halves) < 2:
            why = "decodability withheld: fewer than 2 samples in a fold"
            return {f.name: Score(None, note=why) for f in factors}
        if not factors:
            return {}
        if self._controls is None:
            self._controls = Controls(self.eq)
        found = self._kernel_reading(layer, self._controls) if layer.wide else self._reading(layer, self._controls)
        read = self._classification(layer, found)
        out = {}
        for i, f in enumerate(factors):
            value = float(found.r2[i])
            if math.isfinite(value):
                out[f.name] = Score(value, value - float(found.noise[i]), *read.get(f.name, (None, None)))
            else:
                out[f.name] = Score(None, note="withheld: the variable is constant in one half of the samples")
        return out

    def _reading(self, layer: LayerSummary, controls: Controls) -> Reading:
        """From moments of all rows."""
        targets = [self._fold(keys, m, controls) for keys, m in zip(layer.keys, layer.folds)]
        known = [t.of(m) for t, m in zip(targets, layer.folds)]
        probes = [ridge_probe(m, c) for m, c in zip(layer.folds, known)]
        blocks = targets[0].blocks
        named = slice(0, blocks[-1].stop)
        sides, noises = [], []
        for i in (0, 1):
            m, c, probe, t = layer.folds[i], known[i], probes[1 - i], targets[i]
            sides.append(held_out_r2(probe.columns(named), m, c.columns(named), blocks))
            missed = [held_out_products(probe.columns(r), m, c.columns(r), s) for r, s in zip(t.controls, t.spread)]
            noises.append(controls.r2(missed, t.spread, blocks))
        discrete = self._discrete_columns(blocks)
        scores, middle = [], []
        for probe, t, m, held in zip(probes, targets, layer.folds, self._held_out(layer)):
            only = Probe(probe.weight[:, discrete], probe.bias[discrete])
            scores.append(only.scores(layer.kept[held.rows]) if len(discrete) else torch.empty(0))
            between = [weight @ m.hidden[at] for at, weight in t.middle.values()]
            middle.append(only.between(torch.cat(between)) if between else torch.empty(0))
        return _reading(sides, noises, scores, middle)

    def _kernel_reading(self, layer: LayerSummary, controls: Controls) -> Reading:
        """From the kept rows, where the layer has too many units."""
        factors = self.eq.design.factors
        parts = [predicted(f, layer.kept_values[:, f.column]) for f in factors]
        ends = torch.tensor([part.shape[1] for part in parts]).cumsum(0).tolist()
        blocks = [slice(start, stop) for start, stop in zip([0, *ends], ends)]
        parts += [controls.basis[bins] for bins in layer.kept_bins.unbind(1)]
        y = torch.cat(parts, dim=1)
        sizes = [ends[-1], *([controls.basis.shape[1]] * CONTROLS)]
        products = row_products(layer.kept)
        discrete = self._discrete_columns(blocks)
        sides, noises, scores, middle = [], [], [], []
        for fold, held in enumerate(self._held_out(layer)):
            fitted = (layer.kept_second == bool(fold)).nonzero().flatten()
            guess = kernel_probe(products, fitted, y, layer.kept.shape[1])
            true = y[held.rows]
            error, about = (true - guess[held.rows]).split(sizes, 1), (true - true.mean(0)).split(sizes, 1)
            sides.append(block_r2((error[0] ** 2).sum(0), (about[0] ** 2).sum(0), blocks))
            noises.append(controls.r2([e.T @ e for e in error[1:]], [a.T @ a for a in about[1:]], blocks))
            scores.append(guess[held.rows][:, discrete])
            level = y[fitted][:, discrete]
            own = guess[fitted][:, discrete]
            middle.append((_mean_where(level, own) + _mean_where(1 - level, own)) / 2)
        return _reading(sides, noises, scores, middle)

    def _discrete_columns(self, blocks: Sequence[slice]) -> Tensor:
        found = [torch.arange(b.start, b.stop) for f, b in zip(self.eq.design.factors, blocks) if f.discrete]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    def _fold(self, keys: Tensor, m: Moments, controls: Controls) -> FoldTargets:
        shared = keys.numpy().tobytes() + m.count.numpy().tobytes()
        if shared not in self._folds:
            self._folds[shared] = FoldTargets(self.eq, keys, m, self.discrete, controls)
        return self._folds[shared]

    def _classification(self, layer: LayerSummary, found: Reading) -> dict[str, tuple[float | None, float | None]]:
        """Balanced accuracy and AUROC on the kept rows, each half read by the probe of the other."""
        wanted = self.eq.design.discrete
        if not wanted:
            return {}
        sizes = [indicator_codes(f).shape[1] for f in wanted]
        folds = []
        for held, scores, middle in zip(self._held_out(layer), found.scores, found.middle):
            parts = zip(wanted, scores.split(sizes, dim=1), middle.split(sizes))
            accuracy = torch.stack([balanced_accuracy(s, held.level[f.name], m) for f, s, m in parts])
            area = torch.stack([columns.nanmean() for columns in auroc(scores, held.positive).split(sizes)])
            folds.append(torch.stack([accuracy, area], dim=1))
        both = torch.stack(folds).mean(0)
        return {f.name: (number(a), number(b)) for f, (a, b) in zip(wanted, both)}

    def _held_out(self, layer: LayerSummary) -> list[HeldOut]:
        """The kept rows outside each fold, worked out once for all layers that kept the same rows."""
        kept = layer.kept_values, layer.kept_second
        if self._kept is None or not all(torch.equal(a, b) for a, b in zip(self._kept[0], kept)):
            folds = []
            for fold in (0, 1):
                rows = (layer.kept_second != bool(fold)).nonzero().flatten()
                level = {f.name: f.level_index(layer.kept_values[rows, f.column]) for f in self.eq.design.discrete}
                codes = [indicator_codes(f)[level[f.name]] for f in self.eq.design.discrete]
                folds.append(HeldOut(rows, level, torch.cat([torch.zeros(len(rows), 0), *codes], dim=1) > 0))
            self._kept = (kept, folds)
        return self._kept[1]


def _reading(sides: list[Tensor], noises: list[Tensor], scores: list[Tensor], middle: list[Tensor]) -> Reading:
    noise = ((noises[0] + noises[1]) / 2).nanmean(1).nan_to_num().clamp_min(0)
    return Reading((sides[0] + sides[1]) / 2, noise, scores, middle)


def _mean_where(which: Tensor, x: Tensor) -> Tensor:
    return (which * x).sum(0) / which.sum(0).clamp_min(1)
