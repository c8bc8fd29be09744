"""Running only the part of a network that stands above a layer, with the layer's activation changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import tensor_of, with_tensor
from lightning_interp.activations.select import Layer, device_of, outermost
from lightning_interp.passes.replay import Caller, placed

Edit = Callable[[Layer, Tensor], Tensor]

_OUTPUT = ""  # no layer has that name


class Above:
    """Runs a model on a batch once as it is, and then again and again with one of its layers changed.

    Again, the layer gives the activation that it gave the first time, and so do all others of `layers` that were done before
    it: nothing inside them is computed. What is inside the layer is saved in any case, all that is below it where `layers`
    follow each other without a gap. A layer that returns no plain tensor, or that ran several times, is computed again.

    Args:
        caller: how the model is called.
        layers: {name: Layer}: those to change, and those to take as they are.
    """

    def __init__(self, caller: Caller, layers: Mapping[str, Layer]) -> None:
        self._caller, self._layers = caller, layers
        self._order: list[str] = []
        self._runs: Counter[str] = Counter()
        self._held: dict[str, Tensor] = {}

    def run(self, batch: Any) -> Tensor:
        """The raw output for a batch, everything as it is; the layers' activations are remembered until the next call."""
        self._order, self._runs, self._held = [], Counter(), {}
        output = {} if self._caller.output is None else {_OUTPUT: self._caller.output}
        with hooked({**self._layers, **output}, self._remember):
            return self._caller.run(self._copy(batch))

    def edited(self, batch: Any, name: str, edit: Edit) -> Tensor | None:
        """The raw output for the batch of the last `run`, one layer's activation changed.

        Args:
            batch: that batch.
            name: the layer; of several runs in a pass the last is changed.
            edit: what the network goes on with in place of its activation.

        Returns:
            None where the output is there before the layer is, or the layer does not run.
        """
        if not self._reaches(name):
            return None
        known = self._known(name)
        runs = 0

        def put(here: str, layer: Layer, output: Any) -> Any:
            nonlocal runs
            if here != name:
                return known[here].clone()
            runs += 1
            output = known.get(name, output)
            a = tensor_of(output, layer.key)
            return None if a is None or runs != self._runs[name] else with_tensor(output, a, edit(layer, a))

        # What hooks of the user's make of an activation is in it already: ours, which come after them, have the last word.
        with ExitStack() as stack:
            for n, activation in known.items():
                stack.enter_context(replaced_forward(self._layers[n].module, partial(_stand_in, activation)))
            stack.enter_context(hooked({n: self._layers[n] for n in {**known, name: None}}, put))
            return self._caller.run(self._copy(batch))

    def _remember(self, name: str, layer: Layer, output: Any) -> None:
        self._order.append(name)
        self._runs[name] += 1
        if isinstance(output, Tensor) and name != _OUTPUT and not isinstance(layer.module, torch.jit.ScriptModule):
            self._held[name] = output.clone()  # what follows may write to it

    def _reaches(self, name: str) -> bool:
        last = {n: i for i, n in enumerate(self._order)}
        return name in last and last[name] < last.get(_OUTPUT, len(self._order))

    def _known(self, name: str) -> dict[str, Tensor]:
        """Activations that need not be computed: the layer's and those of the layers done before it."""
        if self._runs[name] > 1:
            return {}
        module = self._layers[name].module
        others = [n for n in self._order[: self._order.index(name)] if n != _OUTPUT and self._layers[n].module is not module]
        return {n: self._held[n] for n in (*others, name) if n in self._held and self._runs[n] == 1}

    def _copy(self, batch: Any) -> Any:
        return placed(batch, device_of(self._caller.model))  # its own: the model may write to it


def with_siblings(model: nn.Module, name: str, layer: Layer) -> dict[str, Layer]:
    """The layer, and all modules beside it and beside those that hold it: what need not be run again if it was done before.

    Args:
        model: the network.
        name: of the layer, as `select` has it.
        layer: the layer.
    """
    others = (m for m in outermost(model, layer.module) if m is not layer.module)
    return {**{f"beside {i}": Layer(m, None, False) for i, m in enumerate(others)}, name: layer}


def _stand_in(activation: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return activation


@contextmanager
def replaced_forward(module: nn.Module, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` on one module while inside, past whatever `__setattr__` a module has."""
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", stand_in)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")
        if own is not None:
            object.__setattr__(module, "forward", own)
