"""The pass for sensitivities: one backward pass per output serves all layers and variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import tensor_of, with_tensor
from lightning_interp.activations.select import Layer, device_of
from lightning_interp.events import Sensitivity
from lightning_interp.functional.coding import Factor
from lightning_interp.functional.contribution import RankError, fit
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.sensitivity import Test, derivative, derivative_test, holm, tcav
from lightning_interp.functional.table import table
from lightning_interp.functional.weights import sample_weights
from lightning_interp.layers import LayerResult
from lightning_interp.measurement import Equation, number, row_name
from lightning_interp.passes.replay import Caller, Replay, own_pass, placed
from lightning_interp.processes import gathered
from lightning_interp.reading import token_mask

Part = tuple[Equation, Mapping[str, LayerResult]]  # an equation, and what is known of each layer by it


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
    parts: Sequence[Part],
    replay: Replay,
) -> dict[str, dict[str, dict[str, Sensitivity]]]:
    """The derivative of the output along every variable's direction at every layer: one backward pass per output.

    Args:
        caller: how the model is called.
        layers: {name: Layer}.
        parts: the event's equation with what is known of each layer, and those of variables by examples.
        replay: the batches to run.

    Returns:
        {layer: {variable: {class or level: Sensitivity}}}.
    """
    known: dict[str, list[tuple[Equation, LayerResult]]] = {}
    for eq, results in parts:
        for n, r in results.items():
            if r.directions and n in layers and eq.fit is not None:
                known.setdefault(n, []).append((eq, r))
    if not known or not caller.pooling.liftable:
        return {}
    stacks = {n: torch.cat([_steps(eq, r) for eq, r in found]) for n, found in known.items()}
    sums = {n: _Gradients(stacks[n]) for n in known}
    with own_pass(caller.model, gradients=True):
        for batch, keep in replay.usable():
            for name, g in _batch_gradients(caller, {n: layers[n] for n in known}, batch, parts[0][0].task).items():
                sums[name].add(g[:, keep.to(g.device)])
    merged = {n: s.merged() for n, s in sums.items()}
    return _tested(known, stacks, {n: s for n, s in merged.items() if s.n})


def _steps(eq: Equation, result: LayerResult) -> Tensor:
    """All directions of a layer, one row per contrast, `[m, d]`."""
    rows = {f.name: f.contrasts() for f in eq.design.factors}
    return torch.cat([rows[v] @ d for v, d in result.directions.items()])


def _batch_gradients(caller: Caller, layers: Mapping[str, Layer], batch: Any, task: str) -> dict[str, Tensor]:
    steps: dict[str, Tensor] = {}
    batch = placed(batch, device_of(caller.model))
    mask = token_mask(batch)

    def nudge(name: str, layer: Layer, output: Any) -> Any:
        # A zero step is added to the activation: its gradient is the pooled gradient, safe under in-place layers after it.
        a = tensor_of(output, layer.key)
        if a is None or not a.is_floating_point() or not torch.is_grad_enabled():
            return None
        d = caller.pooling.pool(a.detach(), layer.module, mask).shape[1]
        wide = torch.promote_types(a.dtype, torch.float32)
        steps[name] = torch.zeros(len(a), d, device=a.device, dtype=wide, requires_grad=True)
        return with_tensor(output, a, a + caller.pooling.lift(steps[name], a, layer.module, mask))

    with hooked(layers, nudge):
        raw = caller.run(batch)
    o = explain_output(raw, None, task).output
    names = list(steps) if o.requires_grad else []
    out: dict[str, list[Tensor]] = {n: [] for n in names}
    for k in range(o.shape[1] if names else 0):
        got = torch.autograd.grad(o[:, k].sum(), [steps[n] for n in names], retain_graph=k + 1 < o.shape[1], allow_unused=True)
        for n, g in zip(names, got):
            out[n].append(torch.zeros_like(steps[n]) if g is None else g)
    return {n: torch.stack(g) for n, g in out.items() if g}


def _tested(
    known: Mapping[str, Sequence[tuple[Equation, LayerResult]]],
    stacks: Mapping[str, Tensor],
    sums: Mapping[str, _Gradients],
) -> dict[str, dict[str, dict[str, Sensitivity]]]:
    values, tests = {}, {}
    for name, s in sums.items():
        mean = torch.as_tensor(s.total) / s.n
        values[name] = derivative(mean, stacks[name])
        blocks = values[name].split([len(_steps(eq, r)) for eq, r in known[name]])
        found = [_test(eq, r, mean, value) for (eq, r), value in zip(known[name], blocks)]
        tests[name] = Test(*(torch.cat(same) for same in zip(*found)))
    if not values:
        return {}
    adjusted = holm(torch.cat([t.p.flatten() for t in tests.values()])).split([t.p.numel() for t in tests.values()])
    out: dict[str, dict[str, dict[str, Sensitivity]]] = {}
    for (name, s), p in zip(sums.items(), adjusted):
        note = "all gradients are equal: the TCAV score is 0 or 1 for any direction" if s.all_equal() else None
        share = torch.as_tensor(s.positive).T / s.n  # [m, c]
        factors = [f for eq, _ in known[name] for f in eq.design.factors]
        out[name] = _split(factors, values[name], tests[name].z, p.view_as(values[name]), share, note)
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
                v, zz, pp, tt = (number(x[at, k]) for x in (value, z, p, share))
                out[f.name][row_name(f, i, k, classes)] = Sensitivity(v, zz, pp, tt, note)
            at += 1
    return out
