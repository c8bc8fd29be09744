"""The pass for interventional effects: every kept batch as it is, and with one variable changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_interp.activations.select import device_of
from lightning_interp.events import ByLevel, Effect
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.intervention import interventional_effect
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.weights import Weights
from lightning_interp.measurement import Equation, by_level
from lightning_interp.passes.replay import Caller, Replay, own_pass, placed
from lightning_interp.processes import gathered, stacked
from lightning_interp.reading import Reader
from lightning_interp.variables import Variable


def interventions(
    caller: Caller,
    variables: Sequence[Variable],
    reader: Reader,
    eq: Equation,
    replay: Replay,
) -> tuple[dict[str, ByLevel], list[str]]:
    """E[f(do(z=1)) − f(do(z=0))] of every variable that has an intervention.

    Args:
        caller: how the model is called.
        variables: all variables.
        reader: reads values and sources from a batch.
        eq: the event's equation.
        replay: the batches to run.

    Returns:
        {variable: Effect, or {class: Effect}} and notes.
    """
    out: dict[str, ByLevel] = {}
    notes: list[str] = []
    factors = {f.name: f for f in eq.design.factors}
    for v in variables:
        if v.intervention is None:
            continue
        if v.name not in factors:
            out[v.name] = Effect(None, note=eq.design.unmeasurable.get(v.name))
            continue
        f = factors[v.name]
        if f.kind == "categorical":
            out[v.name] = Effect(None, note="withheld: an intervention is read for binary and continuous variables")
            continue
        error = None
        try:
            pairs = _pairs(caller, v, f, reader, eq, replay)
        except Exception as problem:  # the user's function: whatever it raises must not end the training
            pairs, error = None, f"{type(problem).__name__}: {problem}"
        errors = [e for e in gathered(error) if e]
        parts = [stacked(part) for part in (pairs if pairs is not None and not errors else _no_pairs())]
        if errors or not len(parts[0]):
            why = errors[0] if errors else "the intervention changed no sample's value"
            out[v.name] = Effect(None, note=f"withheld: {why}")
            notes.append(f"intervention of '{v.name}' withheld: {why}")
            continue
        dz, z, do, weight, cell, source = parts
        if f.kind == "binary" and not bool(dz.any()):
            dz = -2 * z  # no label changed anywhere: the intervention leaves them as they are, and flips all the same
        weights = Weights(eq.weights.mode, weight, cell, eq.weights.cells, *eq.weights[4:])
        estimate = interventional_effect(dz, do, weights, source if eq.clustered else None)
        if estimate is None:
            out[v.name] = Effect(None, note="withheld: the intervention changed no sample's value")
        else:
            single = Factor(f.name, "binary", f.column, f.levels, f.labels)
            out[v.name] = by_level(estimate, single, do.shape[1])
    return out, notes


def _no_pairs() -> tuple[Tensor, ...]:
    none = torch.zeros(0, dtype=torch.float64)
    return none, none, none.view(0, 0), none, none.long(), none.long()


def _pairs(
    caller: Caller,
    v: Variable,
    f: Factor,
    reader: Reader,
    eq: Equation,
    replay: Replay,
) -> tuple[Tensor, ...] | None:
    """Per sample the change of z, z, the change of the output, the weight, the cell and the source."""
    rows = []
    with own_pass(caller.model, gradients=False):
        for kept, keep in replay.usable():
            batch = placed(kept, device_of(caller.model))
            other = v.intervened(placed(kept, device_of(caller.model)))  # its own copy: it may write to it
            before = explain_output(caller.run(batch), None, eq.task).output.cpu()
            after = explain_output(caller.run(other), None, eq.task).output.cpu()
            if before.shape != after.shape:
                raise ValueError(
                    f"the intervention changed the output's shape from {list(before.shape)} to {list(after.shape)}"
                )
            values = reader.values(batch).cpu()
            z = f.encode(values[:, f.column])[:, 0]
            dz = f.encode(v.read(other)[0].cpu())[:, 0] - z
            cell = eq.weights.locate(eq.design, values)
            source = reader.source(batch, len(values))
            found = (dz, z, after - before, eq.weights.cell_weight[cell], cell, cell * 0 if source is None else source.cpu())
            rows.append(tuple(part[keep] for part in found))
    return tuple(torch.cat(parts) for parts in zip(*rows)) if rows else None
