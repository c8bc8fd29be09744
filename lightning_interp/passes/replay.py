"""Batches kept on the CPU, and running the model on them again without leaving a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import Pooling, output_of
from lightning_interp.activations.quiet import quiet
from lightning_interp.activations.select import Layer
from lightning_interp.activations.spread import unwrapped, whole
from lightning_interp.batches import Inputs, moved, nbytes
from lightning_interp.errors import LayerError
from lightning_interp.progress import bar

MAX_BYTES = 512 * 2**20


class Replay:
    """The first batches of a probe set, kept on the CPU.

    Args:
        max_rows: samples to keep.
        max_bytes: memory to use at most.
    """

    def __init__(self, max_rows: int, max_bytes: int = MAX_BYTES) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        self.batches: list[tuple[Any, Tensor, Tensor]] = []
        self.rows = self.bytes = 0
        self.full = False

    def add(self, batch: Any, keep: Tensor, finite: Tensor, window: int | None = None) -> None:
        """Keep a batch if there is room; with `window`, let older ones go for it.

        Args:
            batch: the batch.
            keep: which of its rows count, bool `[n]`.
            finite: whether its outputs are finite, a bool on the device, read when the batch is used.
            window: batches to keep at most.
        """
        while window is not None and len(self.batches) >= window:
            old, mask, _ = self.batches.pop(0)
            self.rows, self.bytes = self.rows - len(mask), self.bytes - nbytes(old)
        if self.rows >= self.max_rows or self.full:
            return
        need = nbytes(batch)
        if self.bytes + need > self.max_bytes:
            self.full = True
            return
        self.batches.append((moved(batch, "cpu"), keep, finite))
        self.rows += len(keep)
        self.bytes += need

    def usable(self) -> Iterator[tuple[Any, Tensor]]:
        """The batches whose outputs were finite, each with the rows that count."""
        kept = bar(self.batches, "running the model again")
        return ((batch, keep.cpu()) for batch, keep, finite in kept if bool(finite) and bool(keep.any()))

    def note(self) -> str | None:
        """What to say where fewer samples were kept than asked for."""
        if not self.full:
            return None
        return f"own passes use {self.rows} samples: more would take over {self.max_bytes / 2**20:.0f} MiB"


@dataclass(frozen=True)
class Caller:
    """How the model is called in a pass of its own.

    Attributes:
        model: the model.
        inputs: what is picked from a batch.
        output: the module whose output is explained; None: what the call returns.
        pooling: of the layers' activations.
        context: entered around each call, such as the trainer's autocast.
    """

    model: nn.Module
    inputs: Inputs
    output: Layer | None
    pooling: Pooling
    context: Callable[[], AbstractContextManager[Any]]

    def run(self, batch: Any) -> Tensor:
        """The raw output for a batch.

        Raises:
            LayerError: no tensor came out.
        """
        raw: list[Tensor | None] = []

        def read(name: str, layer: Layer, output: Any) -> None:
            raw.append(output_of(output, layer.key))

        with self.context(), hooked({} if self.output is None else {"output": self.output}, read):
            result = self.inputs.call(self.model, batch)
        found = output_of(result) if self.output is None else None
        out = next((r for r in reversed(raw) if r is not None), found)
        if out is None:
            raise LayerError("`output` gave no tensor in a pass of its own; check `inputs` and `output`.")
        return out


@contextmanager
def own_pass(model: nn.Module, gradients: bool) -> Iterator[None]:
    """Quiet, with gradients on or off, and out of any inference mode of the caller's; of a sharded model a collective."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), whole(model), unwrapped(model), quiet(model):
        yield


def placed(batch: Any, device: torch.device) -> Any:
    """A copy of a kept batch on the model's device; a batch kept under inference mode cannot take part in a backward pass."""
    return apply_to_collection(batch, Tensor, lambda t: t.to(device, copy=True))
