"""`TrainingLoss`: stands between a LightningModule's training step and the loss that Lightning gets."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lightning_interp.callbacks.probing import LightningModule


class Added(Protocol):
    """What is added to a loss, as `Suppression` is."""

    def watching(self, batch: Any) -> AbstractContextManager[None]:
        """Entered around the training step."""

    def penalty(self, loss: Tensor | None) -> Tensor:
        """Added to the loss of the step."""

    def depends(self, loss: Tensor) -> bool:
        """Whether it goes with a loss of manual optimization."""

    def check_used(self) -> None:
        """Called after a step of manual optimization."""


class TrainingLoss:
    """Adds to the loss where the user hands it to Lightning: before scaling, accumulation, clipping and the strategy.

    In automatic optimization that is what `training_step` returns, in manual optimization what `manual_backward` is given.
    Several may stand on one module; each takes itself away and leaves the others.

    Args:
        module: the LightningModule.
        active: gives what is added in this step, or None.
    """

    def __init__(self, module: LightningModule, active: Callable[[], Added | None]) -> None:
        self._module = module
        self._active = active
        self._ours: dict[str, _Standing] = {}
        automatic = module.automatic_optimization
        step = module.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            added = self._added()
            if added is None:
                return step(*args, **kwargs)
            with added.watching(args[0] if args else kwargs["batch"]):
                result = step(*args, **kwargs)
            if automatic:
                return _result(added, result)
            added.check_used()
            return result

        self._put("training_step", step, training_step)
        if not automatic:
            backward = module.manual_backward

            def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
                added = self._added()
                if added is not None and added.depends(loss):
                    loss = _total(added, loss)
                backward(loss, *args, **kwargs)

            self._put("manual_backward", backward, manual_backward)

    def _added(self) -> Added | None:
        return self._active() if self._ours else None  # a wrapper that came after ours may call it when we are gone

    def _put(self, name: str, before: Callable[..., Any], call: Callable[..., Any]) -> None:
        self._ours[name] = _Standing(self._module, name, before, call)
        object.__setattr__(self._module, name, self._ours[name])

    def remove(self) -> None:
        """Give the training step back."""
        for name, ours in self._ours.items():
            above = vars(self._module).get(name)
            if above is not ours:  # another stands on ours: what was before us is now before it
                while isinstance(above, _Standing) and above.before is not ours:
                    above = above.before
                if isinstance(above, _Standing):
                    above.before = ours.before
            elif ours.before is None:
                object.__delattr__(self._module, name)
            else:
                object.__setattr__(self._module, name, ours.before)
        self._ours = {}


class _Standing:
    """Stands in a module's `__dict__` for one of its methods; a copy of the module, made meanwhile, has its own method there.

    Args:
        module: the module.
        name: the method.
        wrapped: what it does so far; the name and signature of the method itself are kept, which Lightning inspects.
        call: what is done instead.

    Attributes:
        before: what stood in the `__dict__` before, or None.
    """

    def __init__(self, module: LightningModule, name: str, wrapped: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, inspect.unwrap(wrapped), updated=())  # Lightning looks behind one wrapper only
        self._module, self._name, self._call = module, name, call
        self.before = vars(module).get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # In a pickle as well the method is there itself; the module may hold another's, put there before.
        return (getattr, (self._module, self._name)) if self.before is None else (_itself, (self.before,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._module))
        if copied is None:
            return self
        return getattr(type(copied), self._name).__get__(copied) if self.before is None else copy.deepcopy(self.before, memo)


def _itself(method: Any) -> Any:
    return method


def _result(added: Added, result: Any) -> Any:
    if isinstance(result, Tensor):
        return _total(added, result)
    if isinstance(result, Mapping) and isinstance(result.get("loss"), Tensor):
        return {**result, "loss": _total(added, result["loss"])}
    return result  # the user skips the step


def _total(added: Added, loss: Tensor) -> Tensor:
    # Where two penalties are added, both see the task's own loss.
    task = vars(loss).get("_task_loss", loss)
    total = loss + added.penalty(task)
    if total is not loss:
        total._task_loss = task  # type: ignore[attr-defined]
    return total
