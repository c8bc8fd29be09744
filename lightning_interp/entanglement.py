"""What an event says of how far its variables share a layer, from the moments that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from lightning_interp.erasers import layer_erasers
from lightning_interp.functional.entanglement import collateral, contributions, participation, subspace_cosine
from lightning_interp.functional.kernel_probe import kernel_collateral
from lightning_interp.functional.moments import cross
from lightning_interp.functional.probe import stack
from lightning_interp.layers import Groups, LayerResult, predicted
from lightning_interp.measurement import Equation, number
from lightning_interp.results import Entanglement


def entanglements(
    results: Mapping[str, LayerResult], eq: Equation, by_examples: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Entanglement]:
    """The entanglement of every layer whose directions are known; costs no pass.

    Args:
        results: {layer: directions and statistics}.
        eq: the event's equation.
        by_examples: {layer: {variable without labels: its direction `[1, d]`}}: these have cosines only.
    """
    return {name: _layer(r, eq, by_examples.get(name, {})) for name, r in results.items() if r.directions}


def _layer(result: LayerResult, eq: Equation, by_examples: Mapping[str, Tensor]) -> Entanglement:
    directions = {**result.directions, **by_examples}
    if len(directions) < 2:
        return Entanglement(None, note="withheld: fewer than two variables")
    pairs: dict[str, dict[str, float]] = {}
    for a, b in combinations(directions, 2):
        cosine = subspace_cosine(directions[a], directions[b])
        if math.isfinite(cosine):
            pairs.setdefault(a, {})[b] = cosine
    known = [c for row in pairs.values() for c in row.values()]
    if not known:
        return Entanglement(None, note="withheld: the activation does not vary with the variables")
    labelled = len(result.directions) > 1
    rest = (_collateral(result, eq), _participation(result, eq)) if labelled else ({}, None)
    return Entanglement(sum(known) / len(known), pairs, *rest)


def _participation(result: LayerResult, eq: Equation) -> float | None:
    _, m = result.summary.total(result.discrete)
    spreads = [eq.spread.zz[block, block] for block in eq.design.blocks().values()]
    squares = contributions(list(result.directions.values()), spreads, m.squares / m.count[0])
    return number(participation(squares)[1])


def _collateral(result: LayerResult, eq: Equation) -> dict[str, dict[str, float]]:
    """{erased: {probed: R² lost}}, R² below 0 as 0; the erasers fitted to all rows, the probes cross-fitted."""
    folds = result.summary.folds
    if min(float(m.count[0]) for m in folds) < 2:
        return {}
    factors = eq.design.factors
    widths = torch.tensor([len(f.levels) if f.kind == "categorical" else 1 for f in factors]).cumsum(0).tolist()
    blocks = [slice(a, b) for a, b in zip([0, *widths], widths)]
    erasers = layer_erasers(result, eq).erasers
    summary = result.summary
    if summary.wide:
        y = torch.cat([predicted(f, summary.kept_values[:, f.column]) for f in factors], dim=1)
        before, after = kernel_collateral(summary.kept, summary.kept_second, y, blocks, list(erasers.values()))
    else:
        known = []
        for keys, m in zip(summary.keys, folds):
            groups = Groups(keys, m, result.discrete)
            known.append(stack([cross(m, groups.target(f, indicators=True)) for f in factors]))
        before, after = collateral(folds, known, blocks, list(erasers.values()))
    lost = {
        erased: dict(zip((f.name for f in factors), row))
        for erased, row in zip(erasers, (before.clamp_min(0) - after.clamp_min(0)).tolist())
    }
    return {erased: {n: v for n, v in row.items() if math.isfinite(v)} for erased, row in lost.items()}
