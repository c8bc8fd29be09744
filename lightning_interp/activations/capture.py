"""Reading activations: hooks that exist only inside a `with`, and remove nothing that is not theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.pooling import tensor_of
from lightning_interp.activations.quiet import eager, own_passes
from lightning_interp.activations.select import Layer, select

Read = Callable[[str, Layer, Any], Any]


class Hook:
    """A forward hook that hands each output to `read`; a copy of the model does not copy what stands behind it."""

    def __init__(self, name: str, layer: Layer, read: Read, recomputed: bool) -> None:
        self.name, self.layer, self.read, self.recomputed = name, layer, read, recomputed
        self._passes = own_passes()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        if module is not self.layer.module:  # a copy of the model, made while hooked
            return None
        if not self.recomputed and (in_backward() or own_passes() > self._passes):  # activation checkpointing runs it again
            return None
        return self.read(self.name, self.layer, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return no_hook, ()


def no_hook() -> Callable[..., None]:
    """What a hook of ours becomes in a pickle of the model: one that does nothing."""
    return _let_be


def _let_be(module: nn.Module, args: Any, output: Any) -> None:
    return None


def is_reader(hook: Any) -> bool:
    """Whether a forward hook is one of `hooked` that does not see passes of the library's own."""
    return isinstance(hook, Hook) and not hook.recomputed


def in_backward() -> bool:
    """Whether autograd is running a backward pass right now, so that a forward call is a recomputation."""
    task = getattr(torch._C, "_current_graph_task_id", None)  # private; without it recomputations are read as well
    return task is not None and task() != -1


@contextmanager
def hooked(layers: Mapping[str, Layer], read: Read, recomputed: bool = False) -> Iterator[dict[str, Hook]]:
    """Call `read(name, layer, output)` after each run of the layers; what it returns, if anything, replaces the output.

    Args:
        layers: {name: Layer}.
        read: called in the forward pass.
        recomputed: also called where activation checkpointing runs a layer again, and in passes of the library's own that begin
            while inside: what changes the output must do so every time.

    Yields:
        {name: its hook}.
    """
    hooks = {name: Hook(name, layer, read, recomputed) for name, layer in layers.items()}
    with ExitStack() as stack:
        for hook in hooks.values():
            stack.callback(hook.layer.module.register_forward_hook(hook).remove)
        yield hooks


class RootCalls:
    """Tells a call of the root module by the user from the strategy's own call that only wraps the step.

    Under DDP Lightning sends `validation_step` through the wrapper, which calls the root module with the step's arguments and
    returns the step's result: not an output of the network.
    """

    def __init__(self) -> None:
        self._wraps: list[bool] = []

    @contextmanager
    def watching(self, root: nn.Module) -> Iterator[None]:
        """Keep track of the root's calls while inside."""
        self._wraps.clear()
        with ExitStack() as stack:
            stack.callback(root.register_forward_pre_hook(self._enter).remove)
            stack.callback(root.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        forward = vars(module).get("forward")
        self._wraps.append("_ForwardRedirection" in getattr(forward, "__qualname__", ""))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._wraps:
            self._wraps.pop()

    @property
    def wrapping(self) -> bool:
        """Whether the innermost running call of the root is the strategy's."""
        return bool(self._wraps) and self._wraps[-1]

    def __deepcopy__(self, memo: dict[int, Any]) -> RootCalls:
        return self


@contextmanager
def capture(model: nn.Module, patterns: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Capture activations by dotted names or globs.

    Args:
        model: any module.
        patterns: names or globs; `*` stops at a dot, `**` does not.

    Yields:
        `{layer: activation}`, filled as the layers run, detached copies; of a layer that runs several times, the last.

    Raises:
        LayerError: a pattern matches nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with capture(net, ["0"]) as found:
        ...     _ = net(torch.zeros(5, 2))
        >>> found["0"].shape
        torch.Size([5, 3])
    """
    found: dict[str, Tensor] = {}

    def read(name: str, layer: Layer, output: Any) -> None:
        a = tensor_of(output, layer.key)
        if a is not None:
            found[name] = a.detach().clone()

    with eager(model), hooked(select(model, patterns), read):
        yield found
