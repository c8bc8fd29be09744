"""Passes in which activation checkpoints keep what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

# Private: what `checkpoint` runs its function inside of; from torch 2.15 on by the second name.
ENTRIES = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")
REFUSED = (
    "this torch cannot run an activation checkpoint without running it again in the backward pass, where what was put in "
    "place of a layer's activation would be missing: leave the checkpoint out, or take another penalty."
)


@contextmanager
def kept() -> Iterator[None]:
    """Activation checkpoints keep what they compute while inside, at the price of the memory they would save.

    A checkpoint runs its part of the model again in the backward pass, when the pass's own hooks are gone and its buffers are
    the model's: what was put in place of an activation would silently be missing. A reentrant checkpoint is not reached; no
    gradient leads into one from outside but through its inputs and parameters.

    Raises:
        RuntimeError: by torch, at the first checkpoint, where this torch has no such entry.
    """
    module = torch.utils.checkpoint
    before: dict[str, Callable[..., Any]] = {name: getattr(module, name) for name in ENTRIES if hasattr(module, name)}
    if not before:
        with torch.autograd.graph.disable_saved_tensors_hooks(REFUSED):
            yield
        return
    try:
        for name in before:
            setattr(module, name, _once)
        yield
    finally:
        for name, entry in before.items():
            setattr(module, name, entry)


def _once(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield
