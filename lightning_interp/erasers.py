"""Erasers of an event: what takes each variable out of a layer, fitted to the moments that the event has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.erasure import Eraser, LowRank, balanced, natural, random_leace, second, slopes, weighted_leace
from lightning_interp.functional.moments import Moments
from lightning_interp.layers import LayerResult
from lightning_interp.measurement import Equation
from lightning_interp.metrics.layer import is_cell

RIDGE = 1e-2  # as `EraseConfounder` has it: this is its preview
_NOTHING_LEFT = 1e-9  # share of the activation's variance under which all of it was erased


class LayerErasers(NamedTuple):
    """What can be erased at one layer.

    Attributes:
        erasers: {variable: Eraser}.
        weights: "balanced" or "natural", under which they were fitted.
        withheld: {variable: why there is none}.
        hh: covariance of the activation under those weights, `[d, d]`; of a wide layer by the kept rows.
        mean: its mean, `[d]`.
    """

    erasers: dict[str, Eraser]
    weights: str
    withheld: dict[str, str]
    hh: Tensor | LowRank
    mean: Tensor


def layer_erasers(result: LayerResult, eq: Equation) -> LayerErasers:
    """LEACE of every variable at a layer: balanced over the cells where the event's weights are, else given the others.

    Args:
        result: the layer's statistics.
        eq: the event's equation.
    """
    found = _cells(result, eq)
    if found is None:
        _, m = result.summary.total(result.discrete)
        why = "withheld: too many cells for an eraser"
        return LayerErasers({}, "natural", {f.name: why for f in eq.design.factors}, m.gram / m.count[0], m.hidden[0])
    m, codes = found
    weights = "balanced" if eq.weights.mode == "balanced" and not m.columns else "natural"
    rows = _wide_rows(result, eq, m, codes, weights) if result.summary.wide else None
    erasers: dict[str, Eraser] = {}
    withheld: dict[str, str] = {}
    for f in eq.design.factors:
        try:
            eraser = weighted_leace(m, codes, _columns(f, eq, result), weights, RIDGE, rows)
        except VariableError as problem:
            withheld[f.name] = f"withheld: {problem}"
            continue
        if not eraser.rank:
            withheld[f.name] = f"withheld: nothing of '{f.name}' is in the layer's activation"
        elif _left(result, m, eraser) < _NOTHING_LEFT:
            withheld[f.name] = f"withheld: the activation has no more than the {eraser.rank} dimensions that would be erased"
        else:
            erasers[f.name] = eraser
    s = second(m, codes, weights)
    hh: Tensor | LowRank = s.hh
    if rows is not None:
        kept = result.summary.kept
        hh = rows if weights == "balanced" else LowRank((kept - m.hidden[0]) / len(kept) ** 0.5)
    return LayerErasers(erasers, weights, withheld, hh, s.h)


def _wide_rows(result: LayerResult, eq: Equation, m: Moments, codes: Tensor, weights: str) -> LowRank:
    """The covariance that erasers of a wide layer are fitted with, from its kept rows: as from moments of these."""
    kept, values = result.summary.kept, result.summary.kept_values
    none = torch.zeros(len(kept), 0, dtype=torch.float64)
    z = torch.cat([none, *(f.encode(values[:, f.column]) for f in eq.design.discrete)], dim=1)
    if weights == "balanced":
        s = balanced(m, codes)
        cell = (z.unsqueeze(1) == codes).all(2).to(torch.uint8).argmax(1)
        between = (m.hidden[1:] - s.h) / len(codes) ** 0.5
        return LowRank(torch.cat([(kept - m.hidden[1:][cell]) / len(kept) ** 0.5, between]))
    s = natural(m, codes)
    z = torch.cat([z, values[:, [j for j, discrete in enumerate(result.discrete) if not discrete]]], dim=1)
    return LowRank((kept - s.h - (z - s.z) @ slopes(s)) / len(kept) ** 0.5)


def random_erasers(found: LayerErasers, rows: Tensor, rank: int, draws: int, seed: int) -> list[Eraser]:
    """Erasers of random subspaces, the control: the same for the same seed.

    Args:
        found: what can be erased at the layer.
        rows: activations to draw from, `[n, d]`, in an order that does not depend on batches or processes.
        rank: directions to take out.
        draws: how many.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    return [random_leace(found.hh, found.mean, rows, rank, generator, RIDGE) for _ in range(draws)]


def _cells(result: LayerResult, eq: Equation) -> tuple[Moments, Tensor] | None:
    """The moments by cell and the codes of each cell, `[cells, q]`; None where the layer keeps no joint cells."""
    keys, m = result.summary.total(result.discrete)
    cells = is_cell(keys, result.discrete).nonzero().flatten()
    if eq.design.discrete and not len(cells):
        return None
    none = torch.zeros(len(cells), 0, dtype=torch.float64)
    codes = [f.level_codes()[f.level_index(keys[cells, f.column])] for f in eq.design.discrete]
    return m.select(torch.cat([torch.zeros(1, dtype=torch.int64), cells]), 1), torch.cat([none, *codes], dim=1)


def _columns(f: Factor, eq: Equation, result: LayerResult) -> list[int]:
    """Where a variable's columns stand: those of the discrete ones, then the continuous ones."""
    if not f.discrete:
        codes = sum(g.width for g in eq.design.discrete)
        return [codes + [j for j, discrete in enumerate(result.discrete) if not discrete].index(f.column)]
    start = sum(g.width for g in eq.design.discrete if g.column < f.column)
    return list(range(start, start + f.width))


def _left(result: LayerResult, m: Moments, e: Eraser) -> float:
    """Share of the activation's variance that is left: tr((I − RW)'G(I − RW))/tr G, W's rows orthonormal."""
    if result.summary.wide:
        about = result.summary.kept - m.hidden[0]
        return float(((about - (about @ e.read) @ e.write) ** 2).sum() / (about**2).sum())
    read = m.gram @ e.read
    total = m.gram.diagonal().sum()
    return float((total - 2 * (read.T * e.write).sum() + (e.read * read).sum()) / total)
