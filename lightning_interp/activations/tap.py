"""`Tap`: reads a module's output on the graph while a training step runs, and can put another in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import RootCalls, in_backward, no_hook
from lightning_interp.activations.pooling import output_of, tensor_of, with_tensor
from lightning_interp.activations.quiet import own_passes
from lightning_interp.activations.select import Layer, find_module

Put = Callable[[Tensor], Tensor]


class Tap:
    """One module of a training step.

    What it gives is read as it is, on the graph, and the network goes on with a copy: what a later in-place layer does to the
    copy is not done to ours. The hook stands while the tap is open; `fix` makes it stand until `release`, for a compiled model
    never calls a hook that came after its first run. The compiler need not break its graph for it, unless the gradient of the
    loss is wanted there: inside one compiled graph no autograd leads from what the network goes on with to what is read.

    Args:
        model: the network.
        name: the module, or "module:key" for an entry of its dict; None: the result of the model's own forward.
        argument: the argument that named it, for errors.
        output: whether it is the output that is wanted (of a ModelOutput: its logits) or just the first tensor.
        reached: whether `torch.autograd.grad(loss, what it gives)` will be asked for.

    Attributes:
        layer: the module.
        name: what the user calls it.
        blind: whether it ran with gradients off since it was opened, as a reentrant activation checkpoint makes it.

    Raises:
        LayerError: there is no such module.
    """

    def __init__(self, model: nn.Module, name: str | None, argument: str, output: bool, reached: bool = False) -> None:
        self._model = model
        self.layer = Layer(model, None, True) if name is None else find_module(model, name, argument)
        self.name = name or "forward"
        self.blind = False
        self._reached = reached
        self._find = output_of if output else tensor_of
        self._root = RootCalls() if name is None else None
        self._into: list[Tensor] | None = None
        self._put: Put | None = None
        self._passes = 0
        self._fixed = ExitStack()
        self._standing = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        if self._into is None or module is not self.layer.module:  # a copy of the model, made while hooked
            return None
        if self._root is not None and self._root.wrapping:
            return None
        if own_passes() > self._passes:  # of another's, begun since
            return None
        if not torch.compiler.is_compiling() and in_backward():  # activation checkpointing runs the module again
            return None
        found = self._find(output, self.layer.key)
        return None if found is None else self._read(output, found)

    def _read(self, output: Any, found: Tensor) -> Any:
        self._into.append(found)  # type: ignore[union-attr]
        if not torch.is_grad_enabled():
            self.blind = True
        return with_tensor(output, found, found.clone() if self._put is None else self._put(found))

    def fix(self) -> None:
        """Let the hook stand from now on, closed."""
        if not self._standing:
            if self._reached:  # not as a decorator: that would import the compiler
                self._read = torch.compiler.disable(self._read)  # type: ignore[method-assign]
            self._hook(self._fixed)
            self._standing = True

    def release(self) -> None:
        """Take it away."""
        self._fixed.close()
        self._standing = False

    @contextmanager
    def open(self, into: list[Tensor], put: Put | None = None) -> Iterator[None]:
        """Read while inside; a tap that is open already reads on afterwards where it did before.

        Args:
            into: gets what the module gives, one entry per run.
            put: gives what the network goes on with in place of that.
        """
        before = self._into, self._put, self._passes
        self._into, self._put, self._passes, self.blind = into, put, own_passes(), False
        with ExitStack() as stack:
            if before[0] is None:
                self._follow()
            if before[0] is None and not self._standing:
                self._hook(stack)
            try:
                yield
            finally:
                self._into, self._put, self._passes = before

    def _hook(self, stack: ExitStack) -> None:
        # First the reader, for hooks run in the order of their coming: it must see the root's call as still running.
        stack.callback(self.layer.module.register_forward_hook(self).remove)
        if self._root is not None:
            stack.enter_context(self._root.watching(self.layer.module))

    def _follow(self) -> None:
        if self._root is None and not self._standing:  # what stands for a compiled model stands where it was compiled
            self.layer = self.layer.now(self._model, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return no_hook, ()


def fitting(raws: Sequence[Tensor], rows: int) -> Tensor | None:
    """The last of several runs that has so many rows; one with a gradient is preferred."""
    found = [raw for raw in reversed(raws) if raw.ndim and len(raw) == rows]
    return next((raw for raw in found if raw.requires_grad), found[0] if found else None)
