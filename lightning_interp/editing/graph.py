"""What a forward pass does, operation by operation: who makes an activation, and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_interp.activations.pooling import CHANNELS_FIRST_3D, tensor_of
from lightning_interp.activations.select import module_names
from lightning_interp.errors import LayerError

_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)


class Op(NamedTuple):
    """One torch function, as it was called.

    Attributes:
        name: of the function, such as "linear" or "add".
        module: the innermost module that was running.
        inputs: tensors among its arguments.
        outputs: tensors that it gave.
        args: all positional arguments.
        kwargs: the others.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Run(NamedTuple):
    """One call of a module.

    Attributes:
        module: the module.
        output: what it returned.
        at: operations done when it returned.
    """

    module: nn.Module
    output: Any
    at: int


class Graph:
    """The operations of one forward pass, without gradients, that lead to its result.

    Args:
        model: the model.
        call: runs it; returns all that counts as its result.

    Attributes:
        names: {id of a module: its name}.
        ops: in the order of their calls.
        runs: of modules, in the order of their returns.
    """

    def __init__(self, model: nn.Module, call: Callable[[], Any]) -> None:
        self.names = {id(m): name for name, m in reversed(module_names(model).items())}
        self.model = model
        self.runs: list[Run] = []
        recorder = _Recorder()
        with ExitStack() as stack:
            for m in {id(m): m for m in model.modules()}.values():
                stack.callback(m.register_forward_pre_hook(recorder.enter).remove)
                stack.callback(m.register_forward_hook(self._leave(recorder)).remove)
            with recorder:
                result = call()
        self.ops = recorder.ops
        self.results = {id(t) for t in _tensors(result)}
        self._alive = self._leading_there()

    def _leave(self, recorder: _Recorder) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            recorder.stack.pop()
            self.runs.append(Run(module, output, len(recorder.ops)))

        return leave

    def _leading_there(self) -> list[bool]:
        wanted, alive = set(self.results), []
        for op in reversed(self.ops):
            alive.append(any(id(t) in wanted for t in op.outputs))
            if alive[-1]:
                wanted |= {id(t) for t in op.inputs}
        return alive[::-1]

    def name(self, module: nn.Module | None) -> str:
        """What the user calls a module."""
        return self.names.get(id(module), "") or (type(self.model).__name__ if module is None else type(module).__name__)

    def runs_of(self, module: nn.Module) -> list[Run]:
        """Its calls."""
        return [run for run in self.runs if run.module is module]

    def only_run(self, module: nn.Module, argument: str) -> Run:
        """The one call of a module.

        Raises:
            LayerError: it did not run, or ran several times.
        """
        runs = self.runs_of(module)
        if len(runs) != 1:
            often = f"runs {len(runs)} times in a forward pass" if runs else "does not run in a forward pass"
            raise LayerError(f"`{argument}`: '{self.name(module)}' {often}, expected one run")
        return runs[0]

    def maker(self, tensor: Tensor, before: int) -> tuple[int, Op] | None:
        """The last of the first `before` operations that gave a tensor, and its place; None for an input."""
        for i in range(min(before, len(self.ops)) - 1, -1, -1):
            if any(t is tensor for t in self.ops[i].outputs):
                return i, self.ops[i]
        return None

    def readers(self, tensor: Tensor, since: int) -> list[tuple[int, Op]]:
        """The operations from `since` on that take a tensor and lead to the result, and their places."""
        return [
            (i, op) for i, op in enumerate(self.ops) if i >= since and self._alive[i] and any(t is tensor for t in op.inputs)
        ]

    def last_with(self, tensor: Tensor) -> nn.Module | None:
        """The module that tells which axis of `[n, ., .]` holds the units: the nearest below that is sure of it."""
        before = len(self.ops)
        while (found := self.maker(tensor, before)) is not None:
            before, op = found
            if isinstance(op.module, (*CHANNELS_FIRST_3D, *_LAST)):
                return op.module
            same = next((t for t in op.inputs if t.shape == tensor.shape), None)
            if same is None:
                return None
            tensor = same
        return None

    def layers(self) -> Iterator[tuple[str, Run]]:
        """Names and calls of the modules that gave one floating tensor of two axes or more, in order."""
        for run in self.runs:
            name, found = self.names.get(id(run.module)), tensor_of(run.output)
            if name and found is not None and found.is_floating_point() and found.ndim > 1:
                yield name, run


class _Recorder(TorchFunctionMode):
    """Writes down every torch function; of one that is written in Python, not what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.stack: list[nn.Module] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = tuple(_tensors(result))
        if outputs:
            module = self.stack[-1] if self.stack else None
            name = getattr(func, "__name__", str(func))
            self.ops.append(Op(name, module, tuple(_tensors((args, kwargs))), outputs, args, kwargs))
        return result


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (list, tuple)):
        for part in found:
            yield from _tensors(part)
    elif isinstance(found, Mapping):
        for part in found.values():
            yield from _tensors(part)
