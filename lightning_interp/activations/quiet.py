"""Running a model between two training steps so that training never knows."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torchmetrics import Metric


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a pass of one's own; afterwards everything is as it was, also after an exception.

    Kept and put back: the training flag of every submodule, every buffer, the state of every torchmetrics metric inside, the
    random number generators of torch, CUDA, numpy and Python; `self.log` and `self.log_dict` are silent. What a forward pass
    writes to plain Python attributes is not seen.

    Args:
        model: the model to run inside.
    """
    with unnoticed(model), _modes(model), eager(model):
        yield


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """The same for a pass in the mode that the model is in, compiled parts as they are; and readers do not see it."""
    with random_state(), _buffers(model), _metrics(model), _silent_log(model), unseen():
        yield


_passes = 0  # of the library's own that are running, one within the other


@contextmanager
def unseen() -> Iterator[None]:
    """A pass of one's own that readers do not see: those of `hooked` that were there before it."""
    global _passes
    _passes += 1
    try:
        yield
    finally:
        _passes -= 1


def own_passes() -> int:
    """How many passes of the library's own are running, one within the other."""
    return _passes


@contextmanager
def eager(model: nn.Module, needed: bool | None = None) -> Iterator[None]:
    """Run compiled parts eagerly: hooks added after compilation never fire there.

    Args:
        model: the model.
        needed: whether it has compiled parts, where that is known already.
    """
    if not (compiled(model) if needed is None else needed):
        yield
        return
    _STANCE.enter()
    try:
        yield
    finally:
        _STANCE.leave()


class _Stance:
    """The compiler's stance, eager while anybody needs it: several may end in another order than they began."""

    def __init__(self) -> None:
        self._inside = 0
        self._stack = ExitStack()

    def enter(self) -> None:
        if self._inside == 0:
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._stack.close()


_STANCE = _Stance()


@contextmanager
def kept_graphs() -> Iterator[None]:
    """What is compiled while inside can be run backward more than once: its backward pass does not reuse what it has read."""
    config = getattr(sys.modules.get("torch._functorch.config"), "patch", None)  # private; torch's own error names it
    if config is None:
        yield
        return
    with config(donated_buffer=False):
        yield


def compiled(model: nn.Module) -> bool:
    """Whether some part of the model is compiled."""
    if "torch._dynamo" not in sys.modules:
        return False
    return (
        any(
            hasattr(m, "_orig_mod")
            or getattr(m, "_compiled_call_impl", None) is not None
            or hasattr(m.forward, "_torchdynamo_orig_callable")
            for m in model.modules()
        )
        or getattr(model, "_compiler_ctx", None) is not None
    )


class TorchDraws:
    """The random number generators of torch as they are now.

    Args:
        device: whose generator is kept beside that of the CPU; None: no other.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._torch = torch.get_rng_state()
        self._cuda = None if self._device is None else torch.cuda.get_rng_state(self._device)

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._torch)
        if self._device is not None and self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


class Draws(TorchDraws):
    """The random number generators of torch, numpy and Python as they are now; twenty times as slow."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(device)
        self._rest = random.getstate(), np.random.get_state()

    def restore(self) -> None:
        """Put them back."""
        super().restore()
        random.setstate(self._rest[0])
        np.random.set_state(self._rest[1])

    def rest_is_so(self) -> bool:
        """Whether those of numpy and Python are so now."""
        python, (kind, keys, *others) = self._rest
        now_kind, now_keys, *now_others = np.random.get_state()
        numpy = (kind, others) == (now_kind, now_others) and np.array_equal(keys, now_keys)
        return numpy and random.getstate() == python


@contextmanager
def random_state() -> Iterator[None]:
    """Put the random number generators of torch, CUDA, numpy and Python back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    flags = [(m, m.training) for m in model.modules()]
    try:
        for m, _ in flags:
            m.training = False
        yield
    finally:
        for m, flag in flags:
            m.training = flag


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    # The pass works on copies: what inference mode made (trainer.validate) could be neither written to nor put back outside it.
    # A scripted module takes no others in their place, and gets its own back as they were.
    held = [(m, dict(m._buffers)) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    scripted = [b for m in model.modules() if isinstance(m, torch.jit.ScriptModule) for b in m.buffers(recurse=False)]
    before = [b.detach().clone() for b in scripted]
    try:
        for m, buffers in held:
            m._buffers.update({name: b.detach().clone() for name, b in buffers.items() if b is not None})
        yield
    finally:
        for m, buffers in held:
            m._buffers.update(buffers)
        with torch.no_grad():
            for b, old in zip(scripted, before, strict=True):
                b.copy_(old)


@contextmanager
def _metrics(model: nn.Module) -> Iterator[None]:
    # torchmetrics keeps its states in plain attributes.
    names = ("_update_count", "_computed", "_forward_cache")
    held = []
    try:
        for m in model.modules():
            if isinstance(m, Metric):
                state = dict(m.metric_state)
                held.append((m, state, {k: getattr(m, k) for k in names}))
                for k, v in state.items():
                    setattr(m, k, list(v) if isinstance(v, list) else v.clone())
        yield
    finally:
        for metric, state, rest in held:
            for k, v in {**state, **rest}.items():
                setattr(metric, k, v)


@contextmanager
def _silent_log(model: nn.Module) -> Iterator[None]:
    found = [getattr(model, n, None) for n in ("log", "log_dict")]
    logs = all(callable(f) and not isinstance(f, nn.Module) for f in found)  # else it is no LightningModule
    names = ["log", "log_dict"] if logs else []
    before = {n: vars(model)[n] for n in names if n in vars(model)}
    try:
        for n in names:
            object.__setattr__(model, n, _ignore)
        yield
    finally:
        for n in names:
            if n in before:
                object.__setattr__(model, n, before[n])
            else:
                object.__delattr__(model, n)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for `self.log` while the pass is not the user's."""
