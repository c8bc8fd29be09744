"""`Watcher`: hooks a model while it runs on a batch, and makes rows of what its layers and its output gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.activations.capture import RootCalls, hooked
from lightning_interp.activations.pooling import Pooling, output_of, tensor_of
from lightning_interp.activations.quiet import compiled, eager
from lightning_interp.activations.select import Layer, find_module, module_names, select
from lightning_interp.collection import Rows, all_finite
from lightning_interp.errors import InterpError, LabelError, LayerError, described
from lightning_interp.reading import Labels


@dataclass
class Watch:
    """One batch being watched.

    Attributes:
        batch: the batch.
        labels: what was read from it.
        outputs: the raw output of every call.
        layers: {layer: its pooled activation of every call}.
        problem: what went wrong in a hook, told when the batch is done: the user's forward must not feel it.
    """

    batch: Any
    labels: Labels
    outputs: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    problem: Exception | None = None

    def take(self, output: Any, key: str | None = None) -> None:
        """Take in the output of a call."""
        found = output_of(output, key)
        if found is not None:
            self.outputs.append(found.detach().clone())


class Watcher:
    """Hooks one model.

    Args:
        model: the model.
        patterns: names or globs of the layers to read.
        output: the module whose output is explained; None: the model's own forward.
        pooling: how activations become vectors.
        say: told of what is worth a warning.

    Raises:
        LayerError: a layer or the output is no submodule.
    """

    def __init__(
        self, model: nn.Module, patterns: Sequence[str], output: str | None, pooling: Pooling, say: Callable[[str], None]
    ) -> None:
        self.model = model
        self.layers = select(model, patterns)
        self.output = None if output is None else find_module(model, output, "output")
        self._output_name = output
        self._pooling = pooling
        self._say = say
        self._root = RootCalls()
        self.refresh()

    def refresh(self) -> None:
        """Look at the model anew: parts of it may have been compiled since, other rows are to come."""
        self._compiled = compiled(self.model)
        self.widths: dict[str, int] = {}
        self.target_shape: list[int] | None = None

    def _follow(self) -> None:
        """A name stands for what is there now: pruning and adapters put other modules in place of those that were found."""
        self.layers = {name: layer.now(self.model, name) for name, layer in self.layers.items()}
        if self.output is not None and self._output_name is not None:
            self.output = self.output.now(self.model, self._output_name)

    @contextmanager
    def hooks(self, watch: Watch, root: bool = True) -> Iterator[None]:
        """Read layers and output while inside.

        Args:
            watch: where to.
            root: whether, without an `output` module, the model's own forward is read.
        """

        def read_layer(name: str, layer: Layer, output: Any) -> None:
            try:
                a = tensor_of(output, layer.key)
                if a is None:
                    return
                pooled = self._pooling.pool(a.detach(), layer.module, watch.labels.mask)
                watch.layers.setdefault(name, []).append(pooled)
            except Exception as problem:  # a pooling function is the user's: it may raise anything
                watch.problem = LayerError(f"layer '{name}': {described(problem)}")

        def read_output(name: str, layer: Layer, output: Any) -> None:
            if self._root.wrapping:
                return
            try:
                watch.take(output, layer.key)
            except Exception as problem:  # nor does it feel ours
                watch.problem = LayerError(f"`output={self._output_name!r}`: {described(problem)}")

        self._follow()
        with ExitStack() as stack:
            stack.enter_context(eager(self.model, self._compiled))
            stack.enter_context(hooked(self.layers, read_layer))
            if self.output is not None:
                stack.enter_context(hooked({"output": self.output}, read_output))
            elif root:
                # First the reader, for hooks run in the order of their coming: it must see the call as still running.
                stack.enter_context(hooked({"output": Layer(self.model, None, True)}, read_output))
                stack.enter_context(self._root.watching(self.model))
            yield

    def rows(self, watch: Watch, limit: int | None) -> Rows:
        """What a batch gave, one row per sample.

        Args:
            watch: the batch.
            limit: count only so many of its first samples.

        Raises:
            LayerError: the output did not run, or labels, output and named layers do not agree in number.
        """
        if watch.problem is not None:
            raise watch.problem
        labels, n = watch.labels, len(watch.labels.values)
        output = self._last(watch.outputs, n, self._output_name or "the model's forward", named=True)
        if output is None:
            raise self._no_output()
        if output.ndim > 2 or not output.is_floating_point():
            raise LayerError(
                f"`output={self._output_name!r}` gives {output.dtype} of shape {list(output.shape)}, expected floating "
                f"[n] or [n, c].{self._likely_outputs()}"
            )
        found = ((name, self._last(calls, n, name, self.layers[name].named)) for name, calls in watch.layers.items())
        layers = {name: h for name, h in found if h is not None}
        self._check_widths(output, labels.target, layers)
        keep = torch.isfinite(labels.values).all(1)
        if limit is not None:
            keep[limit:] = False
        finite = all_finite(output, layers)
        return Rows(labels.values, output, labels.target, labels.key, labels.source, layers, keep, finite)

    def _check_widths(self, output: Tensor, target: Tensor | None, layers: Mapping[str, Tensor]) -> None:
        """Batches are put one under the other: a batch of another width is a bad one."""
        if target is not None and len(target):
            labels, outputs = target[0].numel(), output[0].numel()
            classes = not target.is_floating_point() or bool(((target == 0) | (target == 1)).all())
            if classes and labels not in (1, outputs):
                raise LabelError(f"`target` has {labels} values per sample, the output has {outputs}.")
            shape, former = list(target.shape[1:]), self.target_shape
            self.target_shape = shape if former is None else former
            if shape != self.target_shape:
                raise LabelError(f"`target` has shape {shape} per sample, it had {former} in the batches before.")
        for name, a in {"": output, **layers}.items():
            width = a.shape[1] if a.ndim > 1 else 1
            before = self.widths.setdefault(name, width)
            if width != before:
                what = f"layer '{name}'" if name else f"`output={self._output_name!r}`"
                raise LayerError(f"{what} has {width} columns, it had {before} in the batches before.")

    def _last(self, calls: list[Tensor], n: int, name: str, named: bool) -> Tensor | None:
        fitting = [c for c in calls if c.ndim and len(c) == n]
        if len(fitting) > 1:
            self._say(f"'{name}' ran {len(fitting)} times in one step: its last call counts")
        if calls and not fitting and named:
            raise LayerError(f"'{name}' gives {len(calls[-1]) if calls[-1].ndim else 'no'} rows, the labels have {n}.")
        return fitting[-1] if fitting else None

    def _no_output(self) -> InterpError:
        if self._output_name is None:
            return LayerError(
                "`output=None` explains the result of the model's own forward, which did not run in the step."
                + self._likely_outputs()
            )
        return LayerError(f"`output={self._output_name!r}` did not run in the step.{self._likely_outputs()}")

    def _likely_outputs(self) -> str:
        likely = [name for name, m in module_names(self.model).items() if name and isinstance(m, nn.Linear)]
        return f" Likely modules: {', '.join(repr(name) for name in likely[-3:])}." if likely else ""
