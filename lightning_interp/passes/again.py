"""Running the network once more within a training step, on the graph: on a changed batch, or with a layer shifted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_interp.activations.checkpoints import kept
from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.quiet import Draws, unnoticed
from lightning_interp.activations.select import device_of
from lightning_interp.activations.spread import unwrapped
from lightning_interp.activations.tap import Tap, fitting
from lightning_interp.batches import Inputs
from lightning_interp.errors import InterpError
from lightning_interp.passes.memory import Call, Memory, standing_in
from lightning_interp.reading import token_mask

STEP = 1e-2  # length of a finite difference, in root mean squares of the activation


def run_again(model: nn.Module, inputs: Inputs, output: Tap, batch: Any, rows: int) -> Tensor:
    """The raw output for a batch, on the graph, the model as it is.

    Args:
        model: the network.
        inputs: what it is given of the batch.
        output: reads the output.
        batch: the batch.
        rows: samples in it.

    Raises:
        InterpError: the model cannot be called with that, or the output did not run on so many rows.
    """
    raws: list[Tensor] = []
    try:
        with output.open(raws):
            inputs.call(model, batch)
    except InterpError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError, NotImplementedError) as problem:
        raise InterpError(
            f"`inputs` expects what the model is called with in a pass of its own; {type(model).__name__} could not be called "
            f"with what was picked from the batch, a {type(batch).__name__}: {type(problem).__name__}: {problem}"
        ) from problem
    found = fitting(raws, rows)
    if found is None:
        raise InterpError(
            f"the output '{output.name}' did not run on {rows} rows in a pass of its own: `inputs` expects what makes the "
            "model run it."
        )
    return found


class Run(NamedTuple):
    """One run of the layer in a training step.

    Attributes:
        value: what it gave, on the graph.
        draws: the random numbers that came next.
        before: how many outputs the step had given before it.
        calls: what of other modules, and of the layer, was done by then in the same call of the model.
    """

    value: Tensor
    draws: Draws
    before: int
    calls: Sequence[Call]


class Derivative:
    """The output's derivative along a direction at a layer, differentiable itself.

    A finite difference through what stands above the layer: f(h + ε·v) − f(h), with h from the training step on its graph, so
    that the layers below get their gradient through h and no second-order graph is ever built. The layer and the modules below
    it give what they gave in the step, on its graph, where they are called as they were called there, and compute nothing (see
    `standing_in`); what happens between them, outside any module, is computed again. The pass sees the random numbers that the
    step itself saw (dropout), and leaves buffers, metrics and logs as they were. Where it cannot come to the same activation as
    the step (the step changed its inputs, or a module below drew random numbers of numpy or Python), f(h) is run again in the
    same way: what goes past the layer must not differ between the two ends. A layer that runs several times for one output is
    shifted in the last run.

    Args:
        model: the network.
        inputs: what a pass of its own gives it.
        output: reads the output.
        layer: reads the layer.
        pooling: how the direction, a pooled vector, is spread over the activation.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, output: Tap, layer: Tap, pooling: Pooling) -> None:
        self.model, self.inputs, self.output, self.layer, self.pooling = model, inputs, output, layer, pooling
        self._start = Draws()
        self._runs: list[Run] = []
        self._memory = Memory(model, layer.layer.module)

    @contextmanager
    def reading(self, into: list[Tensor], outputs: list[Tensor]) -> Iterator[None]:
        """Read the layer in the training step, and remember its random numbers.

        Args:
            into: gets what the layer gives.
            outputs: gets what the output gives.
        """

        def remember(found: Tensor) -> Tensor:
            before = len(outputs)
            calls = [call for call in self._memory.calls if call.before == before]
            self._runs.append(Run(found, Draws(found.device), before, calls))
            return found.clone()

        self._start = Draws(device_of(self.model))
        self._runs.clear()
        # The memory first, for hooks run in the order of their coming: not the copy that is put in the layer's place.
        with self._memory.reading(outputs), self.layer.open(into, remember):
            yield

    def take(self) -> list[Run]:
        """The layer's runs so far; the next call gives only those after this one."""
        found = self._runs.copy()
        self._runs.clear()
        self._memory.calls.clear()
        return found

    def along(
        self,
        direction: Tensor,
        batch: Any,
        runs: Sequence[Run],
        activation: Tensor,
        outputs: Callable[[Tensor], Tensor],
        output: Tensor | None,
    ) -> Tensor:
        """The derivative.

        Args:
            direction: one pooled vector per sample, `[n, d]`.
            batch: the batch of the step.
            runs: of the layer in the step.
            activation: what the layer gave in the run that is shifted.
            outputs: turns a raw output into what is explained, `[n, c]`.
            output: what is explained of the step itself; None where it came under autocast: its rounding would drown the
                difference, so both ends are run again without.

        Returns:
            Change of the output per unit of `direction`, `[n, c]`, on the graph.
        """
        module, mask, cast = self.layer.layer.module, token_mask(batch), output is None
        wide = activation.float() if cast else activation
        length = (
            max(STEP, torch.finfo(wide.dtype).eps ** 0.5) * self.pooling.pool(wide.detach(), module, mask).norm(dim=1).mean()
        )
        size = length / direction.norm(dim=1).mean().clamp_min(1e-30)
        there = wide + self.pooling.lift(size * direction, wide, module, mask)
        chosen = next(run for run in runs if run.value is activation)
        near = [run for run in runs if run.before == chosen.before]  # of the same call of the model
        with torch.autocast(wide.device.type, enabled=False):
            moved, same = self._with(there, near, chosen, batch, cast)
            here = output if same and output is not None else outputs(self._with(wide, near, chosen, batch, cast)[0])
        return (outputs(moved) - here) / size

    def _with(self, value: Tensor, runs: Sequence[Run], chosen: Run, batch: Any, cast: bool) -> tuple[Tensor, bool]:
        """The raw output with a value in place of what the layer gives, and whether it gave the same as in the step."""
        waiting, same = list(runs), []

        def put(found: Tensor) -> Tensor:
            run = waiting.pop(0) if waiting else None
            if run is None or found.shape != run.value.shape:
                same.append(False)
                return found
            same.append(run.draws.rest_is_so() and (found is run.value or torch.equal(found, run.value.to(found.dtype))))
            run.draws.restore()
            return (value if run is chosen else run.value.to(value.dtype)).clone()

        ignored: list[Tensor] = []
        known = standing_in(chosen.calls, self.layer.layer.module, cast)
        with unnoticed(self.model), unwrapped(self.model), kept(), known, self.layer.open(ignored, put):
            self._start.restore()
            return run_again(self.model, self.inputs, self.output, batch, len(value)), all(same) and not waiting
