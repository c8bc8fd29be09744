"""What modules gave in a training step, so that a pass that repeats the step need not compute it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import in_backward, is_reader
from lightning_interp.activations.quiet import TorchDraws, own_passes
from lightning_interp.activations.select import outermost
from lightning_interp.passes.above import replaced_forward

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)  # one call is no other
class Call:
    """One call of a module in a training step.

    Attributes:
        module: the module.
        given: its arguments with their names; tuples are taken apart, after their length.
        versions: of the tensors among them when it was called, None for the rest.
        mode: whether it was in training mode, and gradients on.
        before: how many outputs the step had given before it.
        value: what came out, on the graph.
        version: of that.
        draws: the random numbers of torch that came next.
    """

    module: nn.Module
    given: list[Any]
    versions: list[object]
    mode: tuple[bool, bool]
    before: int
    value: Tensor
    version: object
    draws: TorchDraws

    def repeated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call with these arguments, now, is this one again, and nothing was written to either end of it since."""
        if _mode(self.module) != self.mode or _version(self.value) != self.version:
            return False
        if self.value.requires_grad and not torch.is_grad_enabled():  # what a reentrant checkpoint has made its own
            return False
        now = _given(args, kwargs)
        kept = all(_version(t) == v for t, v in zip(self.given, self.versions, strict=True) if isinstance(t, Tensor))
        return kept and len(now) == len(self.given) and all(map(_same, now, self.given))


class Memory:
    """Remembers the calls of the modules beside a layer: the outermost that do not hold it, and the layer.

    It keeps the arguments and what came out, by reference, until `calls` is cleared.

    Args:
        model: the network.
        layer: one of its submodules.

    Attributes:
        calls: in the order in which they were done.
    """

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.modules = outermost(model, layer)
        self.calls: list[Call] = []

    @contextmanager
    def reading(self, outputs: Sequence[Any]) -> Iterator[None]:
        """Remember while inside.

        Args:
            outputs: as long as the step has given outputs so far.
        """
        self.calls = []
        passes = own_passes()
        with ExitStack() as stack:
            for module in filter(_remembered, self.modules):
                reader = _Reader(module, self.calls, outputs, passes)
                stack.callback(module.register_forward_pre_hook(reader.begin, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(reader).remove)
            yield


def _remembered(module: nn.Module) -> bool:
    # A scripted module takes no such hooks. Hooks inside of one may hand something on that is not seen from here, but for
    # those of our own readers; their names are private, and without them no module is known to have none.
    if isinstance(module, torch.jit.ScriptModule):
        return False
    inside = [m for m in module.modules() if m is not module]
    return not any(getattr(m, "_forward_pre_hooks", True) for m in inside) and all(
        is_reader(hook) for m in inside for hook in getattr(m, "_forward_hooks", {"": None}).values()
    )


class _Reader:
    """Hooks of one module."""

    def __init__(self, module: nn.Module, calls: list[Call], outputs: Sequence[Any], passes: int) -> None:
        self.module, self.calls, self.outputs, self.passes = module, calls, outputs, passes
        self._running: list[Callable[[Tensor, object, TorchDraws], Call]] = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._reads(module):
            given = _given(args, kwargs)
            versions = [_version(t) if isinstance(t, Tensor) else None for t in given]
            self._running.append(partial(Call, module, given, versions, _mode(module), len(self.outputs)))

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._reads(module) or not self._running:
            return
        done = self._running.pop()
        if isinstance(output, Tensor):
            self.calls.append(done(output, _version(output), TorchDraws(output.device)))

    def _reads(self, module: nn.Module) -> bool:
        # Not a copy of the model, not what a checkpoint runs again, not what a pass of the library's own runs.
        return module is self.module and not in_backward() and own_passes() == self.passes

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reader:
        return self


@contextmanager
def standing_in(calls: Sequence[Call], layer: nn.Module, wide: bool) -> Iterator[None]:
    """Modules give what they gave in the step where they are called as they were called then, and compute nothing.

    A module that is called otherwise, with other arguments, in another mode, or more often, runs as ever, as does one whose
    arguments or result were written to since. After each result the random numbers of torch are those that came next in the
    step; those of numpy and Python are not (they would cost more than many a module). What hooks of the user's make of a result
    is in it already: it has the last word, but at the layer, where whoever shifts it has.

    Args:
        calls: of the step.
        layer: the layer.
        wide: give results in single precision at least, for a step that ran under autocast.
    """
    with ExitStack() as stack:
        for module in {id(call.module): call.module for call in calls}.values():
            stand_in = _StandIn(module, [call for call in calls if call.module is module], wide)
            stack.enter_context(replaced_forward(module, stand_in.forward))
            if module is not layer:
                stack.callback(module.register_forward_hook(stand_in).remove)
        yield


class _StandIn:
    """Of one module."""

    def __init__(self, module: nn.Module, calls: list[Call], wide: bool) -> None:
        self._own: Callable[..., Any] = module.forward
        self._calls, self._wide = calls, wide
        self._found: list[Call | None] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = next((call for call in self._calls if call.repeated(args, kwargs)), None)
        self._found.append(call)
        if call is None:
            return self._own(*args, **kwargs)
        self._calls.remove(call)
        return self._result(call)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = self._found.pop() if self._found else None
        return None if call is None else self._result(call)

    def _result(self, call: Call) -> Tensor:
        call.draws.restore()
        return call.value.float() if self._wide and call.value.dtype in HALF else call.value


def _mode(module: nn.Module) -> tuple[bool, bool]:
    return module.training, torch.is_grad_enabled()


def _version(t: Tensor) -> object:
    # Private; without it, as for a tensor of inference mode, none is known to be as it was.
    return object() if t.is_inference() else getattr(t, "_version", object())


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return _parts((args, tuple(kwargs.items())))


def _parts(x: Any) -> list[Any]:
    return [len(x), *(part for inner in x for part in _parts(inner))] if isinstance(x, tuple) else [x]


def _same(now: Any, then: Any) -> bool:
    if isinstance(then, Tensor):
        return now is then or (isinstance(now, Tensor) and _alike(now, then) and _equal(now, then.to(now.dtype)))
    # Of lists, dicts and other objects nobody knows whether the module writes to them.
    return type(now) is type(then) and isinstance(then, (bool, int, float, str, type(None))) and now == then


def _equal(now: Tensor, then: Tensor) -> bool:
    try:
        return torch.equal(now, then)
    except RuntimeError:  # inside a transform of torch.func
        return False


def _alike(now: Tensor, then: Tensor) -> bool:
    # A half may have come back in single precision, see `standing_in`.
    kinds = now.dtype == then.dtype or (now.dtype == torch.float32 and then.dtype in HALF)
    return kinds and now.shape == then.shape and now.device == then.device and now.layout == then.layout == torch.strided
