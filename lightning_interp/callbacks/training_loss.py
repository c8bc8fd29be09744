"""`TrainingLoss`: stands between a LightningModule's training step and the loss that Lightning gets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lightning_interp.callbacks.monitor import LightningModule


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
        self._before: dict[str, Any] = {}
        self._ours: dict[str, Any] = {}
        automatic = module.automatic_optimization
        step = module.training_step

        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            added = active()
            if added is None:
                return step(*args, **kwargs)
            with added.watching(args[0] if args else kwargs["batch"]):
                result = step(*args, **kwargs)
            if automatic:
                return _result(added, result)
            added.check_used()
            return result

        self._put("training_step", training_step)
        if not automatic:
            backward = module.manual_backward

            @functools.wraps(backward)
            def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
                added = active()
                if added is not None and added.depends(loss):
                    loss = _total(added, loss)
                backward(loss, *args, **kwargs)

            self._put("manual_backward", manual_backward)

    def _put(self, name: str, function: Callable[..., Any]) -> None:
        self._before[name] = vars(self._module).get(name)
        self._ours[name] = function
        function.__dict__["__training_loss__"] = self
        object.__setattr__(self._module, name, function)

    def remove(self) -> None:
        """Give the training step back."""
        for name, before in self._before.items():
            above = vars(self._module).get(name)
            if above is not self._ours[name]:  # another stands on ours: what was before us is now before it
                while above is not None and above.__training_loss__._before[name] is not self._ours[name]:
                    above = above.__training_loss__._before[name]
                if above is not None:
                    above.__training_loss__._before[name] = before
            elif before is None:
                object.__delattr__(self._module, name)
            else:
                object.__setattr__(self._module, name, before)
        self._before = {}


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
