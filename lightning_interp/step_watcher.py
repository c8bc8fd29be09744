"""`StepWatcher`: hooks a training step, and gives its output and activation on the graph, with passes of one's own on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.quiet import compiled, eager, kept_graphs, unseen
from lightning_interp.activations.select import device_of
from lightning_interp.activations.spread import sharded, unwrapped
from lightning_interp.activations.tap import Tap, fitting
from lightning_interp.batches import Inputs
from lightning_interp.functional.outputs import explain_output
from lightning_interp.passes import Caller, Derivative, Run, example_direction, run_again
from lightning_interp.processes import world
from lightning_interp.reading import Reader, token_mask
from lightning_interp.variables import Variable


@dataclass
class Watched:
    """One training step being watched.

    Attributes:
        batch: the batch.
        values: raw values of the variables, `[n, p]`; empty where they could not be read.
        target: the task's label, or None.
        outputs: what the output gave, one entry per run.
        activations: what the layer gave.
        asked: whether anybody has asked for the output.
    """

    batch: Any = None
    values: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    target: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    asked: bool = False


@dataclass(frozen=True)
class Taken:
    """What a training step gave.

    Attributes:
        raw: the output, on the graph.
        activation: of the layer, on the graph; None without a layer.
        runs: of the layer, where its derivative will be asked for.
        autocast: the dtype in force where the penalty is asked for, None without autocast.
    """

    raw: Tensor
    activation: Tensor | None
    runs: Sequence[Run]
    autocast: torch.dtype | None

    @property
    def exact(self) -> Tensor:
        """The output in single precision at least."""
        return _wide(self.raw)


class StepWatcher:
    """Hooks one model.

    Args:
        model: the network.
        output: the module whose output is wanted; None: the model's own forward.
        layer: the module whose activation is wanted, or None.
        inputs: what a pass of its own gives the model.
        pooling: how an activation becomes one vector per sample.
        reader: reads the labels.
        derivative: whether `along` will be asked for.
        reached: whether the gradient of the loss at the output will be asked for.

    Raises:
        LayerError: the output or the layer is no submodule.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | None,
        layer: str | None,
        inputs: Inputs,
        pooling: Pooling,
        reader: Reader,
        derivative: bool,
        reached: bool,
    ) -> None:
        self.model, self.inputs, self.pooling, self.reader = model, inputs, pooling, reader
        self.output = Tap(model, output, "output", output=True, reached=reached)
        self.layer = None if layer is None else Tap(model, layer, "layer", output=False)
        self.derivative = Derivative(model, inputs, self.output, self.layer, pooling) if self.layer and derivative else None
        self.step = Watched()
        self._named = output is not None
        self._spread: bool | None = None
        self._compiled = compiled(model)
        self._eager = self._compiled and derivative  # what a compiled graph draws at random cannot be drawn again
        self._kept = ExitStack()
        if self._compiled and reached:
            self._kept.enter_context(kept_graphs())
        if self._compiled:  # a hook that comes after the first run is never called
            for tap in self._taps:
                tap.fix()

    @property
    def spread(self) -> bool:
        """Whether the model is sharded over several processes, so that a pass of one is a collective of all."""
        if self._spread is None:  # looked for in the first step: a model may be sharded after it was named
            self._spread = world()[1] > 1 and sharded(self.model)
        return self._spread

    @property
    def _taps(self) -> list[Tap]:
        return [self.output, *([] if self.layer is None else [self.layer])]

    def release(self) -> None:
        """Let go of the model."""
        self._kept.close()
        for tap in self._taps:
            tap.release()

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Watch the step on a batch; nothing is read outside. A batch without labels raises what the reader raises, inside."""
        step = self.step = Watched(batch)
        with ExitStack() as stack:
            stack.enter_context(eager(self.model, self._eager))
            stack.enter_context(self.output.open(step.outputs))
            if self.derivative is not None:
                stack.enter_context(self.derivative.reading(step.activations, step.outputs))
            elif self.layer is not None:
                stack.enter_context(self.layer.open(step.activations))
            yield

    def read(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Values of the variables, and the target: before the step, which may change the batch."""
        values = self.reader.values(batch)
        return values, self.reader.read_target(batch, len(values))

    def forget(self) -> None:
        """Let go of the step."""
        self.step = Watched()

    def depends(self, loss: Tensor) -> bool:
        """Whether a loss depends on the output of the step."""
        return any(
            torch.autograd.grad(loss, raw, retain_graph=True, allow_unused=True)[0] is not None
            for raw in self.step.outputs
            if raw.requires_grad and loss.requires_grad
        )

    def take(self) -> Taken | str:
        """Output and activation, or why a penalty cannot act; the next call sees only what runs after this one."""
        step = self.step
        outputs, activations = step.outputs.copy(), step.activations.copy()
        runs = [] if self.derivative is None else self.derivative.take()
        step.outputs.clear()  # the hooks go on filling them: a step may come back
        step.activations.clear()
        step.asked = True
        absent = self._absent(outputs, activations)
        if absent and not self._eager and compiled(self.model):
            self._eager = True
            return f"{absent} was compiled before it was hooked: the steps run eagerly from now on"
        if not bool(torch.isfinite(step.values).all()):
            return "a batch with labels that are not finite has no penalty"
        if absent:
            return f"{absent} did not run in the step: the penalty cannot act"
        raw = self._usable(f"the output '{self.output.name}'", self.output, outputs)
        if isinstance(raw, str) or self.layer is None:
            return raw if isinstance(raw, str) else Taken(raw, None, runs, _autocast(raw.device))
        activation = self._usable(f"the layer '{self.layer.name}'", self.layer, activations)
        return activation if isinstance(activation, str) else Taken(raw, activation, runs, _autocast(raw.device))

    def _absent(self, outputs: list[Tensor], activations: list[Tensor]) -> str | None:
        if not outputs:
            return f"the output '{self.output.name}'"
        return None if self.layer is None or activations else f"the layer '{self.layer.name}'"

    def _usable(self, what: str, tap: Tap, runs: list[Tensor]) -> Tensor | str:
        found = fitting(runs, len(self.step.values))
        if found is None:
            return "a batch whose labels and outputs do not agree has no penalty"
        if not found.requires_grad:
            why = " (it ran with gradients off: an activation checkpoint needs `use_reentrant=False`)" if tap.blind else ""
            return f"{what} carries no gradient: the penalty cannot act{why}"
        if not bool(torch.isfinite(found).all()):
            return f"{what} is not finite; there is no penalty in such steps"
        return found

    # --- passes of one's own ------------------------------------------------------------------------------------------

    def intervened(self, taken: Taken, change: Callable[[Any], Any]) -> Tensor:
        """The raw output for the changed batch, on the graph, as the step itself would give it."""
        kind, cast = taken.raw.device.type, taken.autocast
        autocast = torch.autocast(kind, cast, cast is not None, False)
        with autocast, eager(self.model, self._eager), unseen(), unwrapped(self.model):
            return _wide(run_again(self.model, self.inputs, self.output, change(self.step.batch), len(taken.raw)))

    def shown(self, variable: Variable, max_samples: int) -> tuple[Tensor, tuple[str, ...]]:
        """A variable's direction at the layer by its examples, and notes; a collective. See `example_direction`."""
        if self.layer is None:
            raise TypeError("this StepWatcher was made without a `layer`.")
        device = device_of(self.model)
        cast = _autocast(device)

        def context() -> torch.autocast:  # without a cache: what is cast without gradients must not serve the step
            return torch.autocast(device.type, cast, cast is not None, False)

        output = self.output.layer if self._named else None
        caller = Caller(self.model, self.inputs, output, self.pooling, context)
        return example_direction(caller, self.layer.name, self.layer.layer, variable, max_samples)

    def hidden(self, taken: Taken) -> Tensor | None:
        """The pooled activation `[n, d]`, on the graph; None without a layer."""
        if taken.activation is None or self.layer is None:
            return None
        return self.pooling.pool(_wide(taken.activation), self.layer.layer.module, token_mask(self.step.batch))

    def along(self, taken: Taken, task: str, direction: Tensor) -> Tensor:
        """The derivative of what is explained along one direction per sample `[n, d]` at the layer, `[n, c]`, on the graph."""
        if self.derivative is None or taken.activation is None:
            raise TypeError("this StepWatcher was made without `derivative`.")

        def explained(raw: Tensor) -> Tensor:
            return explain_output(raw, None, task).output

        here = None if taken.autocast else explained(taken.exact)
        with eager(self.model, self._eager):
            return self.derivative.along(direction, self.step.batch, taken.runs, taken.activation, explained, here)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _autocast(device: torch.device) -> torch.dtype | None:
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
