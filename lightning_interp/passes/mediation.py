"""The pass for mediation, the preview of an edit: erase a variable at a layer, run what is above it, fit the equation again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.activations.select import Layer, device_of
from lightning_interp.erasers import layer_erasers, random_erasers
from lightning_interp.errors import VariableError
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.contribution import effects
from lightning_interp.functional.erasure import Eraser
from lightning_interp.functional.groups import group_accuracy
from lightning_interp.functional.mediation import gone
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.table import Table, table
from lightning_interp.layers import LayerResult
from lightning_interp.measurement import Equation, contrast, number, refitted
from lightning_interp.passes.above import Above
from lightning_interp.passes.replay import Caller, Replay, own_pass, placed
from lightning_interp.processes import gathered
from lightning_interp.reading import Reader, token_mask
from lightning_interp.results import Mediation

DRAWS = 3  # random subspaces of each rank
_NO_EFFECT = 1e-20  # share of the output's variance under which an effect is rounding


class Cut(NamedTuple):
    """One thing to erase.

    Attributes:
        layer: where.
        variable: what; None for a random subspace.
        rank: directions taken out.
        draw: which of the random subspaces.
    """

    layer: str
    variable: str | None
    rank: int
    draw: int = 0


class Plan(NamedTuple):
    """What is to be erased at one layer.

    Attributes:
        erasers: {cut: eraser}.
        weights: "balanced" or "natural", under which they were fitted.
        withheld: {variable: why it is not erased}.
    """

    erasers: dict[Cut, Eraser]
    weights: str
    withheld: dict[str, str]


class Outputs(NamedTuple):
    """The outputs of the kept samples of all processes.

    Attributes:
        tables: {cut: outputs}; None is the network as it is.
        reached: cuts that changed some output.
    """

    tables: dict[Cut | None, Table]
    reached: set[Cut]


def mediations(
    caller: Caller,
    layers: Mapping[str, Layer],
    results: Mapping[str, LayerResult],
    eq: Equation,
    reader: Reader,
    replay: Replay,
    seed: int,
) -> tuple[dict[str, dict[str, Mediation]], list[str]]:
    """How much of every effect goes when each variable is erased at each layer.

    The eraser is fitted to the event's own moments of the pooled activation; its step is written back by `Pooling.lift`, evenly
    over the positions that pooling reads: what a variable does to the pattern of positions and not to their mean stays. Costs
    one forward pass over the kept samples, and at each layer one for each variable and `DRAWS` for each rank of what stands
    above it.

    Args:
        caller: how the model is called.
        layers: {name: Layer}.
        results: {name: statistics}.
        eq: the event's equation.
        reader: reads values, target and sources from a batch.
        replay: the batches to run.
        seed: of the random subspaces, the same at every event, so that the control does not jump.

    Returns:
        {layer: {erased variable: Mediation}} and notes.
    """
    names = [n for n in results if n in layers]
    if not names or eq.fit is None or not eq.design.factors:
        return {}, []
    if not caller.pooling.liftable:
        return {}, ["mediation withheld: it is not defined for a pooling function, whose result cannot be written back"]
    plans = {n: _plan(n, results[n], eq, seed) for n in names}
    found = _merged(_outputs(caller, {n: layers[n] for n in names}, plans, eq, reader, replay))
    if None not in found.tables:
        return {}, ["mediation withheld: no batch was kept"]
    before = _refitted(eq, found.tables[None])
    if isinstance(before, str):
        return {}, [f"mediation withheld: {before}"]
    note = None
    if before.weights.mode != eq.weights.mode:
        note = f"equation under {before.weights.mode} weights on the {before.n} kept samples"
    notes, out = [], {}
    for name, plan in plans.items():
        if plan.erasers and not any(cut in found.reached for cut in plan.erasers):
            why = f"the output does not depend on layer '{name}' in a pass of its own"
            notes.append(f"mediation withheld: {why}")
            plan = Plan({}, plan.weights, {f.name: why for f in eq.design.factors})
        out[name] = {f.name: _mediation(f, plan, before, found.tables, note) for f in eq.design.factors}
    return out, notes


def _plan(layer: str, result: LayerResult, eq: Equation, seed: int) -> Plan:
    found = layer_erasers(result, eq)
    erasers = {Cut(layer, name, e.rank): e for name, e in found.erasers.items()}
    for rank in sorted({e.rank for e in found.erasers.values()}):
        drawn = random_erasers(found, result.summary.kept, rank, DRAWS, seed)
        erasers |= {Cut(layer, None, rank, i): e for i, e in enumerate(drawn)}
    return Plan(erasers, found.weights, found.withheld)


# --- the pass ---------------------------------------------------------------------------------------------------------


def _outputs(
    caller: Caller,
    layers: Mapping[str, Layer],
    plans: Mapping[str, Plan],
    eq: Equation,
    reader: Reader,
    replay: Replay,
) -> Outputs:
    above = Above(caller, layers)
    parts: dict[Cut | None, list[Table]] = {}
    reached: set[Cut] = set()
    with own_pass(caller.model, gradients=False):
        for kept, keep in replay.usable():
            batch = placed(kept, device_of(caller.model))
            rows, mask = _Rows(batch, keep, reader, eq.task), token_mask(batch)
            plain = above.run(batch)
            parts.setdefault(None, []).append(rows.table(plain))
            for name, plan in plans.items():
                for cut, eraser in plan.erasers.items():
                    raw = above.edited(batch, name, partial(erase, caller, eraser, mask))
                    if raw is not None and not torch.equal(raw, plain):
                        reached.add(cut)
                    parts.setdefault(cut, []).append(rows.table(plain if raw is None else raw))
    return Outputs({cut: _joined(tables) for cut, tables in parts.items()}, reached)


class _Rows:
    """What the outputs of one batch are tabled by."""

    def __init__(self, batch: Any, keep: Tensor, reader: Reader, task: str) -> None:
        values = reader.values(batch)
        source = reader.source(batch, len(values))
        self._values = values.cpu()[keep]
        self._source = None if source is None else source.cpu()[keep]
        self._target = reader.read_target(batch, len(values))
        self._keep, self._task = keep, task

    def table(self, raw: Tensor) -> Table:
        """Outputs by the variables' values."""
        explained = explain_output(raw, self._target, self._task)
        correct = None if explained.correct is None else explained.correct.cpu()[self._keep]
        return table(self._values, explained.output.cpu()[self._keep], self._source, correct)


def erase(caller: Caller, eraser: Eraser, mask: Tensor | None, layer: Layer, a: Tensor) -> Tensor:
    """An activation with something erased, its step spread evenly over the positions that pooling reads."""
    pooled = caller.pooling.pool(a, layer.module, mask)
    with torch.autocast(a.device.type, enabled=False):
        return a + caller.pooling.lift(eraser.to(a).step(pooled.double()), a, layer.module, mask)


def _merged(mine: Outputs) -> Outputs:
    """The outputs of all processes: a collective."""
    tables: dict[Cut | None, list[Table]] = {}
    reached: set[Cut] = set()
    for theirs in gathered(mine):
        reached |= theirs.reached
        for cut, part in theirs.tables.items():
            tables.setdefault(cut, []).append(part)
    return Outputs({cut: _joined(parts) for cut, parts in tables.items()}, reached)


def _joined(parts: list[Table]) -> Table:
    return Table(*(torch.cat(same) for same in zip(*parts))).grouped()


# --- the numbers ------------------------------------------------------------------------------------------------------


def _refitted(eq: Equation, rows: Table) -> Equation | str:
    """The equation on other outputs, or why it cannot be had."""
    try:
        found = refitted(eq, rows)
    except VariableError as problem:
        return str(problem)
    return found if found.fit is not None else found.notes[-1]


def _mediation(f: Factor, plan: Plan, before: Equation, tables: Mapping[Cut | None, Table], note: str | None) -> Mediation:
    """What goes when `f` is erased."""
    factors = before.design.factors
    cut = next((c for c in plan.erasers if c.variable == f.name), None)
    if cut is None:
        return Mediation({g.name: None for g in factors}, weights=plan.weights, note=plan.withheld[f.name])
    withheld = {g.name: why for g in factors if (why := _nothing_to_lose(before, g))}
    lost, accuracy = _lost(before, tables[cut], withheld)
    withheld |= {n: "withheld: not finite once it is erased" for n, v in lost.items() if v is None and n not in withheld}
    controls = [_lost(before, tables[c], withheld) for c in plan.erasers if (c.variable, c.rank) == (None, cut.rank)]
    random = {g.name: _mean([taken[g.name] for taken, _ in controls]) for g in factors}
    return Mediation(lost, accuracy, random, _mean([a for _, a in controls]), cut.rank, plan.weights, withheld, note)


def _nothing_to_lose(before: Equation, f: Factor) -> str | None:
    """Why a variable's effect cannot be said to go: its interval contains 0 (Bonferroni over levels and outputs)."""
    if before.fit is None:
        return before.notes[-1]
    rows = contrast(before, f)
    outputs = before.rows.mean.shape[1]
    found = effects(before.fit, rows, 1 - 0.05 / (len(rows) * outputs))
    if (found.note or "").startswith("withheld"):
        return found.note
    clear = (found.low > 0) | (found.high < 0)
    if not bool(clear.any()) or float((found.value**2).sum()) <= _NO_EFFECT * before.spread.total:
        return "withheld: the effect as it is cannot be told from 0"
    return None


def _lost(before: Equation, rows: Table, withheld: Mapping[str, str]) -> tuple[dict[str, float | None], float | None]:
    """The fraction of every effect that is gone, and the change of the mean accuracy of the cells."""
    after = _refitted(before, rows)
    lost: dict[str, float | None] = {}
    for f in before.design.factors:
        if isinstance(after, str) or f.name in withheld or before.fit is None or after.fit is None:
            lost[f.name] = None
        else:
            row = contrast(before, f)
            lost[f.name] = number(gone(row @ before.fit.coefficients, row @ after.fit.coefficients))
    was, now = _accuracy(before.rows, before), _accuracy(rows, before)
    return lost, None if was is None or now is None else now - was


def _accuracy(rows: Table, eq: Equation) -> float | None:
    if not float(rows.scored.sum()):
        return None
    return number(group_accuracy(rows.correct, rows.scored, eq.weights.cell, len(eq.weights.cells)).accuracy.nanmean())


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
