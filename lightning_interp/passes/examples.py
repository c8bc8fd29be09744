"""The pass over example sets: where layers hold a variable that has no labels, by inputs that show it and inputs that do not.

The two sets are read as a probe set of their own with one binary variable, z = ±½ for with and without. Its pattern is then the
difference of the sets' mean activations (FastCAV, Schmalwasser et al. 2025), its probe is fitted on one half of the examples
and scored on the other, and the test of a projection h·ḡ is HC2 with two cells: Welch's two-sample statistic, by Student's t
with the degrees of freedom of Bell & McCaffrey (2002). It tells whether the sets differ along ḡ; not in what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import tensor_of
from lightning_interp.activations.select import Layer, device_of
from lightning_interp.batches import moved
from lightning_interp.collection import Collection, Rows, all_finite
from lightning_interp.errors import LabelError, LayerError, VariableError
from lightning_interp.functional.sampling import content_key
from lightning_interp.layers import LayerReader, LayerResult
from lightning_interp.loaders import probe_loader
from lightning_interp.measurement import Equation, equation
from lightning_interp.passes.replay import Caller, own_pass, placed
from lightning_interp.processes import gathered, world
from lightning_interp.reading import token_mask
from lightning_interp.variables import Variable

LEAST = 5  # examples in each set
VALUES = (1.0, 0.0)  # of the sets with the variable and without


@dataclass(frozen=True)
class Shown:
    """What the example sets of one variable say.

    Attributes:
        eq: the sets' outputs explained by which set they come from; only its coding and its weights are of use.
        results: what is known of each layer.
        notes: what was withheld or left out.
    """

    eq: Equation
    results: dict[str, LayerResult]
    notes: tuple[str, ...]


def read_examples(
    caller: Caller,
    layers: Mapping[str, Layer],
    variable: Variable,
    task: str,
    max_samples: int,
    seed: int,
    decodability: bool,
    before: Mapping[str, Mapping[str, Tensor]],
) -> Shown:
    """Run the example sets through the model and read its layers; a collective, and the model is left as it was.

    Args:
        caller: how the model is called.
        layers: {name: Layer}.
        variable: with `examples`; each is taken as independent of the others.
        task: the event's task.
        max_samples: examples of each set to use at most.
        seed: of the halves and of the controls.
        decodability: whether probes are wanted.
        before: {layer: {variable: its direction at the last event}}.

    Raises:
        VariableError: the examples cannot be had or run, or are too few.
    """
    collection = Collection(["binary"], list(layers), 2 * max_samples, seed)
    collection.task = task
    notes = _run_sets(caller, layers, variable, max_samples, collection.add)
    rows = collection.table()
    n = [0 if rows is None else int(rows.count[rows.values[:, 0] == value].sum()) for value in VALUES]
    if rows is None or min(n) < LEAST:
        raise _too_few(variable, *n)
    eq = equation(rows, [variable.name], ["binary"], {}, task)
    results, reader = {}, LayerReader(eq, [True])
    for name, summary in collection.summaries([True])[0].items():
        if int(sum(float(m.count[0]) for m in summary.folds)) == eq.n:
            results[name] = reader.read(summary, decodability, before.get(name, {}))
    missing = [name for name in layers if name not in results]
    notes += [f"layer '{name}' withheld for '{variable.name}': it did not run for all of the examples" for name in missing]
    return Shown(eq, results, tuple(notes))


def example_direction(
    caller: Caller, name: str, layer: Layer, variable: Variable, max_samples: int
) -> tuple[Tensor, tuple[str, ...]]:
    """The direction of `read_examples` at one layer, and no more: a collective, and the model is left as it was.

    Args:
        caller: how the model is called.
        name: of the layer, for errors.
        layer: the layer.
        variable: with `examples`.
        max_samples: examples of each set to use at most.

    Returns:
        The difference of the sets' mean activations `[1, d]`, float64 on the model's device, and what was left out.

    Raises:
        VariableError: the examples cannot be had or run, or are too few, or the layer did not run for all of them.
    """
    count, total, ran = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 0), True

    def take(rows: Rows) -> None:
        nonlocal count, total, ran
        ran = ran and name in rows.layers
        if not ran or not bool(rows.finite):
            return
        kept = rows.kept()
        sets = [kept.layers[name][kept.values[:, 0] == value].double() for value in VALUES]
        count = count + torch.tensor([[len(h)] for h in sets])
        summed = torch.stack([h.sum(0) for h in sets])
        total = total + summed if total.numel() else summed

    notes = _run_sets(caller, {name: layer}, variable, max_samples, take)
    parts = gathered((ran, count, total.cpu()))
    if not all(ran for ran, _, _ in parts):
        raise VariableError(f"layer '{name}' did not run for all of the `examples` of '{variable.name}'.")
    n = sum((count for _, count, _ in parts), torch.zeros_like(count))
    if n.min() < LEAST:
        raise _too_few(variable, *(int(k) for k in n))
    mean = torch.stack([part for _, _, part in parts if part.numel()]).sum(0) / n
    return (mean[:1] - mean[1:]).to(device_of(caller.model)), tuple(notes)


def _too_few(variable: Variable, one: int, other: int) -> VariableError:
    return VariableError(
        f"`examples` of '{variable.name}' expects at least {LEAST} finite examples in each set, got {one} with it and "
        f"{other} without."
    )


def _run_sets(
    caller: Caller, layers: Mapping[str, Layer], variable: Variable, most: int, take: Callable[[Rows], None]
) -> list[str]:
    """Run both sets, hand each batch's rows on, and give notes; what fails on one process is an error on all."""
    error, cut = None, False
    try:
        with own_pass(caller.model, gradients=False):
            for examples, value in zip(variable.example_sets(), VALUES):
                cut = _run(caller, layers, examples, value, most, take) or cut
    except Exception as problem:  # the user's function, or the model on inputs that it was not made for
        own = isinstance(problem, VariableError)
        error = str(problem) if own else f"`examples` of '{variable.name}': {type(problem).__name__}: {problem}"
    found = gathered((error, cut))
    errors = [e for e, _ in found if e]
    if errors:
        raise VariableError(errors[0])
    return [f"'{variable.name}': only the first {most} examples of a set are used"] if any(c for _, c in found) else []


def _run(
    caller: Caller, layers: Mapping[str, Layer], examples: Any, value: float, most: int, take: Callable[[Rows], None]
) -> bool:
    """Run this process's share of one set; whether some examples were left out, being more than `most`."""
    seen, shared = 0, isinstance(examples, (DataLoader, Dataset))
    if shared:
        most = -(-most // world()[1])  # a batch is run by one process, as a whole
    for batch in probe_loader(examples if shared else [examples]):
        if seen >= most:
            return True
        rows = _rows(caller, layers, batch, value)
        rows.keep[most - seen :] = False
        seen += len(rows.keep)
        take(rows)
    return seen > most


def _rows(caller: Caller, layers: Mapping[str, Layer], batch: Any, value: float) -> Rows:
    device = device_of(caller.model)
    batch = moved(placed(batch, device), device)  # a copy: the model may write to it
    first = caller.inputs.first(batch)
    if first is None:
        raise LabelError(f"no tensor stands at `inputs` in a {type(batch).__name__}.")
    n, mask = len(first), token_mask(batch)
    key = content_key(first)
    found: dict[str, Tensor] = {}

    def read(name: str, layer: Layer, output: Any) -> None:
        a = tensor_of(output, layer.key)
        if a is not None and a.ndim and len(a) == n:
            found[name] = caller.pooling.pool(a.detach(), layer.module, mask)

    with hooked(layers, read):
        raw = caller.run(batch)
    if raw.ndim == 0 or len(raw) != n:
        raise LayerError(f"the output has shape {list(raw.shape)} for {n} examples.")
    values = torch.full((n, 1), value, dtype=torch.float64, device=raw.device)
    keep = torch.ones(n, dtype=torch.bool, device=raw.device)
    return Rows(values, raw.detach().clone(), None, key.to(raw.device), None, found, keep, all_finite(raw, found))
