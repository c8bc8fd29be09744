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
from lightning_interp.functional.moments import Cross, Moments, Target, cross
from lightning_interp.functional.probe import Probe, auroc, balanced_accuracy, held_out_r2, ridge_probe
from lightning_interp.measurement import Equation, number
from lightning_interp.metrics.layer import BINS, CONTROLS, LayerSummary, is_cell


@dataclass(frozen=True)
class LayerResult:
    """What an event says of one layer.

    Attributes:
        scores: {variable: Score}.
        directions: {variable: pattern `[width, d]`}, activation per unit of z.
        summary: the layer's statistics.
        discrete: which variables make its groups.
    """

    scores: dict[str, Score]
    directions: dict[str, Tensor]
    summary: LayerSummary
    discrete: tuple[bool, ...]


def indicator_codes(f: Factor) -> Tensor:
    """The columns that a probe predicts, by level: one per level, or for a binary variable that of the second level."""
    eye = torch.eye(len(f.levels), dtype=torch.float64)
    return eye[:, 1:] if f.kind == "binary" else eye


def target_of(f: Factor, keys: Tensor, discrete: Sequence[bool], indicators: bool) -> Target:
    """A variable as columns over the groups of a layer's moments.

    Args:
        f: the variable.
        keys: the groups' keys `[g, p + 2]`.
        discrete: which variables make groups.
        indicators: the columns that a probe predicts; else the columns of z.
    """
    cell = is_cell(keys, discrete)
    if not f.discrete:
        at = cell.nonzero().flatten() if cell.any() else torch.zeros(1, dtype=torch.int64)
        column = [j for j, d in enumerate(discrete) if not d].index(f.column)
        return Target(at, torch.empty(0), column, f.center, f.scale)
    if not cell.any():
        others = [j for j in range(keys.shape[1]) if j != f.column]
        cell = ~keys[:, f.column].isnan() & keys[:, others].isnan().all(1)
    at = cell.nonzero().flatten()
    codes = indicator_codes(f) if indicators else f.level_codes()
    return Target(at, codes[f.level_index(keys[at, f.column])])


def control_targets(f: Factor, eq: Equation, keys: Tensor) -> list[Target]:
    """Random columns at the variable's marginal, one `Target` per control: nothing in the network can know them."""
    quantile = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    x = eq.rows.values[:, f.column]
    order = f.level_index(x).argsort(stable=True) if f.discrete else x.argsort()
    below = eq.rows.count[order].cumsum(0) / eq.rows.count.sum()
    drawn = x[order][torch.searchsorted(below, quantile).clamp(max=len(x) - 1)]
    codes = indicator_codes(f)[f.level_index(drawn)] if f.discrete else f.encode(drawn)
    p = keys.shape[1] - 2
    groups = [(keys[:, p] == r).nonzero().flatten() for r in range(CONTROLS)]
    return [Target(at, codes[keys[at, p + 1].long()]) for at in groups]


class FoldTargets:
    """All variables and their controls as columns over one fold's groups; layers with the same rows share it.

    Attributes:
        blocks: columns of each variable.
        controls: columns of each control, `CONTROLS` per variable.
        middle: {discrete variable: weights of the groups in the activation half way between a level and the rest, `[t, g]`}.
    """

    def __init__(self, eq: Equation, keys: Tensor, m: Moments, discrete: Sequence[bool]) -> None:
        self.blocks: list[slice] = []
        self.controls: list[slice] = []
        self._continuous: list[tuple[int, Target]] = []
        self.middle: dict[str, Tensor] = {}
        rows, means, variances, start = [], [], [], 0
        for f in eq.design.factors:
            for i, t in enumerate([target_of(f, keys, discrete, indicators=True), *control_targets(f, eq, keys)]):
                one = cross(m, t)
                width = len(one.mean)
                if i == 0 and f.discrete:
                    self.middle[f.name] = _middle(t, m.count)
                (self.controls if i else self.blocks).append(slice(start, start + width))
                if t.column >= 0:
                    self._continuous.append((start, t))
                rows.append(self._operator(m.count, t, one, width))
                means.append(one.mean)
                variances.append(one.variance)
                start += width
        self._matrix = torch.cat(rows)
        self._mean, self._variance = torch.cat(means), torch.cat(variances)

    @staticmethod
    def _operator(count: Tensor, t: Target, one: Cross, width: int) -> Tensor:
        # Covariance with the activation as a matrix over groups: Σ_g n_g/n (code_g − mean)(h̄_g − h̄).
        out = torch.zeros(width, len(count), dtype=torch.float64)
        if t.column < 0:
            out[:, t.groups] = ((count[t.groups] / count[0]).unsqueeze(1) * (t.codes - one.mean)).T
        return out

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


def _middle(target: Target, count: Tensor) -> Tensor:
    mass = count[target.groups].unsqueeze(1)
    inside, outside = mass * target.codes, mass * (1 - target.codes)
    out = torch.zeros(target.codes.shape[1], len(count), dtype=torch.float64)
    out[:, target.groups] = (inside / inside.sum(0).clamp_min(1) + outside / outside.sum(0).clamp_min(1)).T / 2
    return out


class LayerReader:
    """Reads layers against an event's equation; what layers share is worked out once.

    Args:
        eq: the event's equation.
        discrete: which variables make groups in the layers' statistics.
    """

    def __init__(self, eq: Equation, discrete: Sequence[bool]) -> None:
        self.eq = eq
        self.discrete = list(discrete)
        self._folds: dict[bytes, FoldTargets] = {}
        self._kept: tuple[tuple[Tensor, Tensor], list[HeldOut]] | None = None

    def read(self, layer: LayerSummary, decodability: bool, before: Mapping[str, Tensor]) -> LayerResult:
        """Decodability, directions and drift of every variable at a layer.

        Args:
            layer: the layer's statistics.
            decodability: whether probes are wanted.
            before: {variable: direction at the last event}.
        """
        directions = self._directions(layer)
        scores = self._scores(layer) if decodability else {}
        for name, now in directions.items():
            if name in scores and name in before and before[name].shape == now.shape:
                moved = drift(now, before[name])
                scores[name] = replace(scores[name], drift=moved if math.isfinite(moved) else None)
        if decodability:
            scores |= {name: Score(None, note=why) for name, why in self.eq.design.unmeasurable.items()}
        return LayerResult(scores, directions, layer, tuple(self.discrete))

    # --- directions ---------------------------------------------------------------------------------------------------

    def _directions(self, layer: LayerSummary) -> dict[str, Tensor]:
        eq = self.eq
        if eq.fit is None or not eq.design.factors:
            return {}
        keys, m = layer.total(self.discrete)
        targets = [target_of(f, keys, self.discrete, indicators=False) for f in eq.design.factors]
        zh = torch.cat([cross(m, t, self._group_weights(keys[t.groups])).covariance for t in targets])
        b = pattern(eq.spread.zz, zh)
        return {f.name: b[block] for f, block in zip(eq.design.factors, eq.design.blocks().values())}

    def _group_weights(self, keys: Tensor) -> Tensor | None:
        """Weight of one sample of each cell; None where all samples weigh the same."""
        weights, design = self.eq.weights, self.eq.design
        if weights.mode == "natural" or not design.discrete:
            return None
        return weights.cell_weight[weights.locate(design, keys)]

    # --- decodability -------------------------------------------------------------------------------------------------

    def _scores(self, layer: LayerSummary) -> dict[str, Score]:
        factors = self.eq.design.factors
        if min(float(m.count[0]) for m in layer.folds) < 2:
            why = "decodability withheld: fewer than 2 samples in a fold"
            return {f.name: Score(None, note=why) for f in factors}
        if not factors:
            return {}
        targets = [self._fold(keys, m) for keys, m in zip(layer.keys, layer.folds)]
        known = [t.of(m) for t, m in zip(targets, layer.folds)]
        probes = [ridge_probe(m, c) for m, c in zip(layer.folds, known)]
        blocks = [*targets[0].blocks, *targets[0].controls]
        sides = [held_out_r2(probes[1 - i], layer.folds[i], known[i], blocks) for i in (0, 1)]
        r2 = (sides[0] + sides[1]) / 2
        noise = r2[len(factors) :].view(len(factors), CONTROLS).nanmean(1).nan_to_num().clamp_min(0)
        read = self._classification(layer, probes, targets)
        out = {}
        for i, f in enumerate(factors):
            value = float(r2[i])
            if math.isfinite(value):
                out[f.name] = Score(value, value - float(noise[i]), *read.get(f.name, (None, None)))
            else:
                out[f.name] = Score(None, note="withheld: the variable is constant in one half of the samples")
        return out

    def _fold(self, keys: Tensor, m: Moments) -> FoldTargets:
        shared = keys.numpy().tobytes() + m.count.numpy().tobytes()
        if shared not in self._folds:
            self._folds[shared] = FoldTargets(self.eq, keys, m, self.discrete)
        return self._folds[shared]

    def _classification(
        self, layer: LayerSummary, probes: Sequence[Probe], targets: Sequence[FoldTargets]
    ) -> dict[str, tuple[float | None, float | None]]:
        """Balanced accuracy and AUROC on the kept rows, each half read by the probe of the other."""
        wanted = [(f, b) for f, b in zip(self.eq.design.factors, targets[0].blocks) if f.discrete]
        if not wanted:
            return {}
        columns = torch.cat([torch.arange(b.start, b.stop) for _, b in wanted])
        sizes = [b.stop - b.start for _, b in wanted]
        folds = []
        for fold, (probe, held) in enumerate(zip(probes, self._held_out(layer))):
            only = Probe(probe.weight[:, columns], probe.bias[columns])
            scores = only.scores(layer.kept[held.rows])
            middle = only.between(torch.cat([targets[fold].middle[f.name] for f, _ in wanted]) @ layer.folds[fold].hidden)
            parts = zip(wanted, scores.split(sizes, dim=1), middle.split(sizes))
            accuracy = torch.stack([balanced_accuracy(s, held.level[f.name], m) for (f, _), s, m in parts])
            area = torch.stack([columns.nanmean() for columns in auroc(scores, held.positive).split(sizes)])
            folds.append(torch.stack([accuracy, area], dim=1))
        found = torch.stack(folds).mean(0)
        return {f.name: (number(a), number(b)) for (f, _), (a, b) in zip(wanted, found)}

    def _held_out(self, layer: LayerSummary) -> list[HeldOut]:
        """The kept rows outside each fold, worked out once for all layers that kept the same rows."""
        kept = layer.kept_values, layer.kept_second
        if self._kept is None or not all(torch.equal(a, b) for a, b in zip(self._kept[0], kept)):
            folds = []
            for fold in (0, 1):
                rows = (layer.kept_second != bool(fold)).nonzero().flatten()
                level = {f.name: f.level_index(layer.kept_values[rows, f.column]) for f in self.eq.design.factors if f.discrete}
                positive = torch.cat([indicator_codes(f)[level[f.name]] for f in self.eq.design.discrete], dim=1) > 0
                folds.append(HeldOut(rows, level, positive))
            self._kept = (kept, folds)
        return self._kept[1]
