"""Running the network once more within a training step, on the graph: on a changed batch, or with a layer shifted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.quiet import unnoticed
from lightning_interp.activations.tap import Tap, fitting
from lightning_interp.batches import Inputs
from lightning_interp.errors import InterpError
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
        InterpError: the output did not run on so many rows.
    """
    raws: list[Tensor] = []
    with output.open(raws):
        inputs.call(model, batch)
    found = fitting(raws, rows)
    if found is None:
        raise InterpError(
            f"the output '{output.name}' did not run on {rows} rows in a pass of its own: `inputs` expects what makes the "
            "model run it."
        )
    return found


class Derivative:
    """The output's derivative along a direction at a layer, differentiable itself.

    A finite difference through what stands above the layer: f(h + ε·v) − f(h), with h from the training step on its graph, so
    that the layers below get their gradient through h and no second-order graph is ever built. The pass sees the random
    numbers that the step itself saw above the layer (dropout), and leaves buffers, metrics and logs as they were.

    Args:
        model: the network.
        inputs: what a pass of its own gives it.
        output: reads the output.
        layer: reads the layer.
        pooling: how the direction, a pooled vector, is spread over the activation.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, output: Tap, layer: Tap, pooling: Pooling) -> None:
        self.model, self.inputs, self.output, self.layer, self.pooling = model, inputs, output, layer, pooling
        self._random: list[Tensor] = []

    @contextmanager
    def reading(self, into: list[Tensor]) -> Iterator[None]:
        """Read the layer in the training step, and remember the random numbers above it."""
        with self.layer.open(into, self._remember):
            yield

    def _remember(self, found: Tensor) -> Tensor:
        self._random = [torch.get_rng_state(), *([torch.cuda.get_rng_state(found.device)] if found.is_cuda else [])]
        return found.clone()

    def along(
        self,
        direction: Tensor,
        batch: Any,
        activation: Tensor,
        outputs: Callable[[Tensor], Tensor],
        output: Tensor | None,
    ) -> Tensor:
        """The derivative.

        Args:
            direction: one pooled vector per sample, `[n, d]`.
            batch: the batch of the step.
            activation: what the layer gave in the step.
            outputs: turns a raw output into what is explained, `[n, c]`.
            output: what is explained of the step itself; None where it came under autocast: its rounding would drown the
                difference, so both ends are run again without.

        Returns:
            Change of the output per unit of `direction`, `[n, c]`, on the graph.
        """
        module, mask = self.layer.layer.module, token_mask(batch)
        wide = activation.float() if output is None else activation
        length = (
            max(STEP, torch.finfo(wide.dtype).eps ** 0.5) * self.pooling.pool(wide.detach(), module, mask).norm(dim=1).mean()
        )
        size = length / direction.norm(dim=1).mean().clamp_min(1e-30)
        there = wide + self.pooling.lift(size * direction, wide, module, mask)
        with torch.autocast(wide.device.type, enabled=False):
            moved = outputs(self._with(there, batch))
            here = outputs(self._with(wide, batch)) if output is None else output
        return (moved - here) / size

    def _with(self, value: Tensor, batch: Any) -> Tensor:
        def put(found: Tensor) -> Tensor:
            if found.shape != value.shape:
                return found
            torch.set_rng_state(self._random[0])
            if found.is_cuda:
                torch.cuda.set_rng_state(self._random[1], found.device)
            return value

        ignored: list[Tensor] = []
        with unnoticed(self.model), self.layer.open(ignored, put):
            return run_again(self.model, self.inputs, self.output, batch, len(value))
