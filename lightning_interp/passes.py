"""Passes of the library's own: the model run again on kept batches, for gradients and for interventions.

All of them run inside `quiet`, in evaluation mode, and leave no trace in the model, its buffers or any random stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import Pooling, tensor_of
from lightning_interp.activations.quiet import quiet
from lightning_interp.activations.select import Layer
from lightning_interp.batches import Inputs, moved, nbytes, pick, size
from lightning_interp.errors import InterpError, LayerError
from lightning_interp.events import ByLevel, Effect, Sensitivity
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.contribution import RankError, fit, table
from lightning_interp.functional.intervention import interventional_effect
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.sensitivity import Test, derivative, derivative_test, holm, tcav
from lightning_interp.functional.weights import Weights, sample_weights
from lightning_interp.layers import LayerResult
from lightning_interp.measurement import Equation, by_level
from lightning_interp.processes import gathered, stacked
from lightning_interp.variables import Variable

MAX_BYTES = 512 * 2**20


class Replay:
    """The first batches of a probe set, kept on the CPU.

    Args:
        max_rows: samples to keep.
        max_bytes: memory to use at most.
    """

    def __init__(self, max_rows: int, max_bytes: int = MAX_BYTES) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        self.batches: list[Any] = []
        self.rows = self.bytes = 0
        self.full = False

    def add(self, batch: Any, rows: int, window: int | None = None) -> None:
        """Keep a batch of `rows` samples, if there is room; with `window`, let older ones go for it."""
        while window is not None and len(self.batches) >= window:
            old = self.batches.pop(0)
            self.rows, self.bytes = self.rows - size(old), self.bytes - nbytes(old)
        if self.rows >= self.max_rows or self.full:
            return
        need = nbytes(batch)
        if self.bytes + need > self.max_bytes:
            self.full = True
            return
        self.batches.append(moved(batch, "cpu"))
        self.rows += rows
        self.bytes += need

    def note(self) -> str | None:
        """What to say where fewer samples were kept than asked for."""
        if not self.full:
            return None
        return f"own passes use {self.rows} samples: more would take over {self.max_bytes / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Caller:
    """How the model is called in a pass of its own.

    Attributes:
        model: the model.
        inputs: what is picked from a batch.
        output: the module whose output is explained; None: what the call returns.
        pooling: of the layers' activations.
        mask: where the batch holds a token mask, or None.
        context: entered around each call, such as the trainer's autocast.
    """

    model: nn.Module
    inputs: Inputs
    output: Layer | None
    pooling: Pooling
    mask: str
    context: Callable[[], AbstractContextManager[Any]]

    def run(self, batch: Any) -> Tensor:
        """The raw output for a batch.

        Raises:
            LayerError: no tensor came out.
        """
        raw: list[Tensor | None] = []

        def read(name: str, layer: Layer, output: Any) -> None:
            raw.append(tensor_of(output, layer.key))

        with self.context(), hooked({} if self.output is None else {"output": self.output}, read):
            result = self.inputs.call(self.model, batch)
        found = tensor_of(result, "logits" if hasattr(result, "logits") else None) if self.output is None else None
        out = next((r for r in reversed(raw) if r is not None), found)
        if out is None:
            raise LayerError("`output` gave no tensor in a pass of its own; check `inputs` and `output`.")
        return out

    def device(self) -> torch.device:
        """Where the model lives."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def token_mask(self, batch: Any) -> Tensor | None:
        """The batch's token mask, if it has one."""
        return token_mask(batch, self.mask)


def token_mask(batch: Any, key: str = "attention_mask") -> Tensor | None:
    """The batch's token mask, if it has one."""
    try:
        found = pick(batch, key, "mask")
    except InterpError:
        return None
    return found if isinstance(found, Tensor) and found.ndim == 2 else None


@contextmanager
def own_pass(model: nn.Module, gradients: bool) -> Iterator[None]:
    """Quiet, with gradients on or off, and out of any inference mode of the caller's."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), quiet(model):
        yield


def _placed(batch: Any, device: torch.device) -> Any:
    # Cloned: a batch that was kept under inference mode cannot take part in a backward pass.
    from lightning_utilities.core.apply_func import apply_to_collection

    return apply_to_collection(batch, Tensor, lambda t: t.to(device, copy=True))


# --- sensitivity ------------------------------------------------------------------------------------------------------


class _Gradients:
    """Sums over samples of a layer's gradients, and how many are positive along each direction."""

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions
        self.n = 0.0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.positive: Tensor | float = 0.0

    def add(self, g: Tensor) -> None:
        """Add gradients `[c, n, d]`."""
        g = g.detach().double().cpu()
        self.n += g.shape[1]
        self.total = self.total + g.sum(1)
        self.square = self.square + (g**2).sum((1, 2))
        self.positive = self.positive + torch.stack([tcav(one, self.directions) * len(one) for one in g])

    def merged(self) -> _Gradients:
        """The sums over all processes."""
        out = _Gradients(self.directions)
        for n, total, square, positive in gathered((self.n, self.total, self.square, self.positive)):
            if n:
                out.n += n
                out.total, out.square = out.total + total, out.square + square
                out.positive = out.positive + positive
        return out

    def all_equal(self) -> bool:
        """Whether every sample has the same gradient, as under a linear head."""
        mean = torch.as_tensor(self.total) / self.n
        spread = torch.as_tensor(self.square) / self.n - (mean**2).sum(1)
        return bool((spread <= 1e-10 * torch.as_tensor(self.square) / self.n).all())


def sensitivities(
    caller: Caller,
    layers: Mapping[str, Layer],
    results: Mapping[str, LayerResult],
    eq: Equation,
    replay: Replay,
) -> dict[str, dict[str, dict[str, Sensitivity]]]:
    """The derivative of the output along every variable's direction at every layer: one backward pass per output.

    Args:
        caller: how the model is called.
        layers: {name: Layer}.
        results: {name: directions and statistics}.
        eq: the event's equation.
        replay: the batches to run.

    Returns:
        {layer: {variable: {class or level: Sensitivity}}}.
    """
    rows = {f.name: f.contrasts() for f in eq.design.factors}
    known = {n: r for n, r in results.items() if r.directions and n in layers}
    if not known or eq.fit is None or not caller.pooling.liftable:
        return {}
    stacks = {n: torch.cat([rows[v] @ d for v, d in r.directions.items()]) for n, r in known.items()}
    sums = {n: _Gradients(stacks[n]) for n in known}
    with own_pass(caller.model, gradients=True):
        for batch in replay.batches:
            for name, g in _batch_gradients(caller, {n: layers[n] for n in known}, batch, eq.task).items():
                sums[name].add(g)
    found = {n: s.merged() for n, s in sums.items()}
    return _tested(eq, known, stacks, {n: s for n, s in found.items() if s.n})


def _batch_gradients(caller: Caller, layers: Mapping[str, Layer], batch: Any, task: str) -> dict[str, Tensor]:
    steps: dict[str, Tensor] = {}
    batch = _placed(batch, caller.device())
    mask = caller.token_mask(batch)

    def nudge(name: str, layer: Layer, output: Any) -> Any:
        # A zero step is added to the activation: its gradient is the pooled gradient, safe under in-place layers after it.
        a = tensor_of(output, layer.key)
        if a is None or not a.is_floating_point():
            return None
        d = caller.pooling.pool(a.detach(), layer.module, mask).shape[1]
        steps[name] = torch.zeros(len(a), d, device=a.device, requires_grad=True)
        return _replaced(output, a, a + caller.pooling.lift(steps[name], a, layer.module, mask))

    with hooked(layers, nudge):
        raw = caller.run(batch)
    o = explain_output(raw, None, task).output
    names = list(steps)
    out: dict[str, list[Tensor]] = {n: [] for n in names}
    for k in range(o.shape[1]):
        got = torch.autograd.grad(o[:, k].sum(), [steps[n] for n in names], retain_graph=k + 1 < o.shape[1], allow_unused=True)
        for n, g in zip(names, got):
            out[n].append(torch.zeros_like(steps[n]) if g is None else g)
    return {n: torch.stack(g) for n, g in out.items()}


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    if output is old:
        return new
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(_replaced(part, old, new) for part in output)
    if isinstance(output, list):
        return [_replaced(part, old, new) for part in output]
    if isinstance(output, Mapping):
        copied = type(output)(output)  # type: ignore[call-arg]
        for key in output:
            if output[key] is old:
                copied[key] = new  # type: ignore[index]
        return copied
    return output


def _tested(
    eq: Equation, results: Mapping[str, LayerResult], stacks: Mapping[str, Tensor], sums: Mapping[str, _Gradients]
) -> dict[str, dict[str, dict[str, Sensitivity]]]:
    values, tests = {}, {}
    for name, s in sums.items():
        mean = torch.as_tensor(s.total) / s.n
        values[name] = derivative(mean, stacks[name])
        tests[name] = _test(eq, results[name], mean, values[name])
    if not values:
        return {}
    adjusted = holm(torch.cat([t.p.flatten() for t in tests.values()])).split([t.p.numel() for t in tests.values()])
    out: dict[str, dict[str, dict[str, Sensitivity]]] = {}
    for (name, s), p in zip(sums.items(), adjusted):
        note = "all gradients are equal: the TCAV score is 0 or 1 for any direction" if s.all_equal() else None
        share = torch.as_tensor(s.positive).T / s.n  # [m, c]
        out[name] = _split(eq.design.factors, values[name], tests[name].z, p.view_as(values[name]), share, note)
    return out


def _test(eq: Equation, result: LayerResult, gradient: Tensor, value: Tensor) -> Test:
    """Fit the equation to the kept rows' projections on the gradient: its intervals are those of the derivative."""
    layer = result.summary
    rows = table(layer.kept_values, layer.kept @ gradient.T, layer.kept_source)
    weights = sample_weights(eq.design, rows.values, rows.count, eq.weights.mode)
    lift = torch.block_diag(*(f.contrasts() for f in eq.design.factors))
    try:
        fitted = fit(eq.design.encode(rows.values), rows, weights, eq.clustered)
    except RankError:
        nan = torch.full_like(value, math.nan)
        return Test(nan, nan)
    return derivative_test(value, fitted, torch.cat([torch.zeros(len(lift), 1, dtype=torch.float64), lift], 1), eq.n)


def _split(
    factors: Sequence[Factor], value: Tensor, z: Tensor, p: Tensor, share: Tensor, note: str | None
) -> dict[str, dict[str, Sensitivity]]:
    out: dict[str, dict[str, Sensitivity]] = {}
    at, classes = 0, value.shape[1]
    for f in factors:
        out[f.name] = {}
        for i in range(len(f.contrasts())):
            for k in range(classes):
                parts = ([f.labels[i]] if f.kind == "categorical" else []) + ([str(k)] if classes > 1 else [])
                numbers = (float(x[at, k]) for x in (value, z, p, share))
                v, zz, pp, tt = (x if math.isfinite(x) else None for x in numbers)
                out[f.name][",".join(parts)] = Sensitivity(v, zz, pp, tt, note)
            at += 1
    return out


# --- interventions ----------------------------------------------------------------------------------------------------


def interventions(
    caller: Caller,
    variables: Sequence[Variable],
    read_values: Callable[[Any], Tensor],
    read_source: Callable[[Any, int], Tensor | None],
    eq: Equation,
    replay: Replay,
) -> tuple[dict[str, ByLevel], list[str]]:
    """E[f(do(z=1)) − f(do(z=0))] of every variable that has an intervention.

    Args:
        caller: how the model is called.
        variables: all variables, in the order of the columns of `read_values`.
        read_values: raw values `[n, p]` of a batch.
        read_source: ids of shared sources of a batch of so many samples.
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
            pairs = _pairs(caller, v, f, read_values, read_source, eq, replay)
        except Exception as problem:  # the user's function: whatever it raises must not end the training
            pairs, error = None, f"{type(problem).__name__}: {problem}"
        errors = [e for e in gathered(error) if e]
        parts = [stacked(part) for part in (pairs if pairs is not None and not errors else _no_pairs())]
        if errors or not len(parts[0]):
            why = errors[0] if errors else "the intervention changed no sample's value"
            out[v.name] = Effect(None, note=f"withheld: {why}")
            notes.append(f"intervention of '{v.name}' withheld: {why}")
            continue
        dz, do, weight, cell, source = parts
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
    return none, none.view(0, 0), none, none.long(), none.long()


def _pairs(
    caller: Caller,
    v: Variable,
    f: Factor,
    read_values: Callable[[Any], Tensor],
    read_source: Callable[[Any, int], Tensor | None],
    eq: Equation,
    replay: Replay,
) -> tuple[Tensor, ...] | None:
    """Per sample the change of z, the change of the output, the weight, the cell and the source."""
    rows = []
    with own_pass(caller.model, gradients=False):
        for kept in replay.batches:
            batch = _placed(kept, caller.device())
            other = v.intervened(batch)
            before = explain_output(caller.run(batch), None, eq.task).output.cpu()
            after = explain_output(caller.run(other), None, eq.task).output.cpu()
            if before.shape != after.shape:
                raise ValueError(
                    f"the intervention changed the output's shape from {list(before.shape)} to {list(after.shape)}"
                )
            values = read_values(batch).cpu()
            z = f.encode(values[:, f.column])[:, 0]
            dz = f.encode(v.read(other)[0].cpu())[:, 0] - z
            if f.kind == "binary" and not bool(dz.any()):
                dz = -2 * z  # the label was left as it is: the intervention flips a binary variable all the same
            weight, cell = _weights_of(eq, values)
            source = read_source(batch, len(values))
            rows.append((dz, after - before, weight, cell, cell * 0 if source is None else source.cpu()))
    return tuple(torch.cat(parts) for parts in zip(*rows)) if rows else None


def _weights_of(eq: Equation, values: Tensor) -> tuple[Tensor, Tensor]:
    if not eq.design.discrete:
        cell = torch.zeros(len(values), dtype=torch.int64)
    else:
        levels = torch.stack([f.level_index(values[:, f.column]) for f in eq.design.discrete], 1)
        cell = (levels.unsqueeze(1) == eq.weights.cells.unsqueeze(0)).all(2).to(torch.uint8).argmax(1)
    return eq.weights.cell_weight[cell], cell
