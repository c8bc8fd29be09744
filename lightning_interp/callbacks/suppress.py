"""`SuppressConfounder`: takes a confounder out while Lightning trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_interp.callbacks.monitor import Callback, ConceptMonitor, LightningModule, Trainer, logger_step
from lightning_interp.callbacks.variables_by_name import find_variable, monitors_of
from lightning_interp.errors import InterpError
from lightning_interp.penalties import Penalty
from lightning_interp.suppression import Suppression
from lightning_interp.variables import Variable


class SuppressConfounder(Callback):
    """Adds a penalty on a confounder to the loss, without a change to the LightningModule.

    It acts where the loss is handed to Lightning, before scaling, accumulation, clipping and the strategy: the weights after
    training are those of the same penalty written into `training_step` by hand. What the module itself logs stays the task's
    loss.

    Logged at every step that the Trainer logs: `penalty/{confounder}` (the unweighted term, in squared output units or loss
    units), `penalty_weight/{confounder}` (the multiplier in force), `penalty_scale/{confounder}` (the cap's factor, 0…1).

    Args:
        confounder: what should not matter: a `Variable`, or the name of one in a `ConceptMonitor` of the same Trainer.
        given: what should matter and goes with it, as variables or names.
        penalty: the term; None: `ContributionPenalty`.
        output: the module whose output is explained; None: that of the monitor, else the LightningModule's own forward.
        inputs: what a second forward pass gives the model; None: as the monitor, else the first element of a tuple or list.
        target: where the task's label sits; None: as the monitor, else the second element of a tuple or list.
        loss_fn: per-sample task losses `(output, target) -> [n]`, or `"pkg.mod:name"`; None: cross-entropy, or what fits.
        balance: whether the task's loss also gets cell-balanced weights.
        weight: λ, 0 or more.
        start_epoch: the first epoch (zero-based) in which the penalty acts.
        ramp_epochs: epochs over which it grows to its full weight.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> from lightning_interp import Concept, Confounder, SuppressConfounder
        >>> suppress = SuppressConfounder(Confounder("grass"), given=[Concept("digit")], output="head", target="label")
    """

    def __init__(
        self,
        confounder: str | Variable,
        given: Sequence[str | Variable] = (),
        penalty: Penalty | None = None,
        output: str | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        target: str | int | Callable[[Any], Any] | None = None,
        loss_fn: str | Callable[[Tensor, Tensor], Tensor] | None = None,
        balance: bool = True,
        weight: float = 1.0,
        start_epoch: int = 2,
        ramp_epochs: int = 1,
    ) -> None:
        if start_epoch < 0 or ramp_epochs < 0:
            raise InterpError(f"`start_epoch` and `ramp_epochs` expect 0 or more, got {start_epoch} and {ramp_epochs}.")
        self._named = [confounder, *given]
        self._arguments = {"output": output, "inputs": inputs, "target": target}
        self._penalty, self._weight, self._loss_fn, self._balance = penalty, weight, loss_fn, balance
        self.start_epoch, self.ramp_epochs = start_epoch, ramp_epochs
        self.name = confounder if isinstance(confounder, str) else confounder.name
        self.suppression: Suppression | None = None
        self._state: Mapping[str, Any] | None = None
        self._before: dict[str, Any] = {}
        self._module: LightningModule | None = None
        self._ours: dict[str, Any] = {}
        self._bound = False
        self._key = self.name
        if all(isinstance(v, Variable) for v in self._named):  # nothing has to wait for a monitor
            self.suppression = self._build(self._named, self._arguments)

    def _build(self, variables: Sequence[Any], arguments: Mapping[str, Any]) -> Suppression:
        return Suppression(
            None,
            variables[0],
            variables[1:],
            self._penalty,
            self._weight,
            arguments["output"],
            arguments["inputs"],
            arguments["target"],
            self._loss_fn,
            self._balance,
        )

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what was given by name, and stand between the training step and its loss."""
        monitor = self._monitor(trainer)
        if self.suppression is None or not self._bound:  # built again: the monitor's places were not known
            self.suppression = self._build([find_variable(v, trainer) for v in self._named], self._filled(monitor))
            self._bound = True
        same = [c for c in trainer.callbacks if isinstance(c, SuppressConfounder) and c.name == self.name]  # type: ignore[attr-defined]
        self._key = self.name if len(same) < 2 else f"{self.name}/{type(self.suppression.term).__name__}"
        if self._state is not None:
            self.suppression.load_state_dict(self._state)
            self._state = None
        self.suppression.bind(pl_module)
        self._wrap(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the training step back."""
        self._unwrap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the training step back: teardown is not called after an exception."""
        self._unwrap()

    def _monitor(self, trainer: Trainer) -> ConceptMonitor | None:
        names = {v if isinstance(v, str) else v.name for v in self._named}
        return next((m for m in monitors_of(trainer) if names & {v.name for v in m.monitor.variables}), None)

    def _filled(self, monitor: ConceptMonitor | None) -> dict[str, Any]:
        theirs = {} if monitor is None else monitor.places
        return {name: theirs.get(name) if value is None else value for name, value in self._arguments.items()}

    # --- the loss -----------------------------------------------------------------------------------------------------

    def _wrap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unwrap()
        self._module = pl_module
        automatic = pl_module.automatic_optimization
        step = pl_module.training_step

        @functools.wraps(step)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            suppression = self._active(trainer)
            if suppression is None:
                return step(*args, **kwargs)
            with suppression.watching(args[0] if args else kwargs["batch"]):
                result = step(*args, **kwargs)
            if automatic:
                return self._added(suppression, result)
            suppression.check_used()
            return result

        self._put("training_step", training_step)
        if not automatic:
            backward = pl_module.manual_backward

            @functools.wraps(backward)
            def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
                suppression = self._active(trainer)
                if suppression is not None and suppression.depends(loss):
                    loss = _with_penalty(suppression, loss)
                backward(loss, *args, **kwargs)

            self._put("manual_backward", manual_backward)

    def _put(self, name: str, function: Callable[..., Any]) -> None:
        if self._module is not None:
            self._before[name] = vars(self._module).get(name)
            self._ours[name] = function
            function.__dict__["__suppress__"] = self
            object.__setattr__(self._module, name, function)

    def _unwrap(self) -> None:
        for name, before in self._before.items():
            above = vars(self._module).get(name)
            if above is not self._ours[name]:  # another stands on ours: what was before us is now before it
                while above is not None and above.__suppress__._before[name] is not self._ours[name]:
                    above = above.__suppress__._before[name]
                if above is not None:
                    above.__suppress__._before[name] = before
            elif before is None:
                object.__delattr__(self._module, name)
            else:
                object.__setattr__(self._module, name, before)
        self._before, self._ours, self._module = {}, {}, None

    def _active(self, trainer: Trainer) -> Suppression | None:
        if self.suppression is None or not trainer.training:
            return None
        self.suppression.factor = self._factor(trainer)
        return self.suppression if self.suppression.factor > 0 else None

    def _factor(self, trainer: Trainer) -> float:
        total = trainer.num_training_batches
        each = 1 / total if total and total != float("inf") else 1.0  # of an epoch, one batch; of unknown length: all of it
        done = trainer.current_epoch - self.start_epoch + each * min(trainer.fit_loop.batch_idx + 1, 1 / each)
        if trainer.current_epoch < self.start_epoch:
            return 0.0
        return min(1.0, done / self.ramp_epochs) if self.ramp_epochs else 1.0

    def _added(self, suppression: Suppression, result: Any) -> Any:
        if isinstance(result, Tensor):
            return _with_penalty(suppression, result)
        if isinstance(result, Mapping) and isinstance(result.get("loss"), Tensor):
            return {**result, "loss": _with_penalty(suppression, result["loss"])}
        return result  # the user skips the step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the term, its weight and its cap."""
        if self.suppression is None or not self.suppression.last:
            return
        found = {f"{key}/{self._key}": value for key, value in self.suppression.last.items()}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in found.items()})
        step, every = logger_step(trainer), trainer.log_every_n_steps  # type: ignore[attr-defined]
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches and batch_idx + 1 != trainer.num_training_batches
        if every and (step + 1) % every == 0 and not accumulating:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Holds confounder and penalty, so that two of them in one Trainer do not mix."""
        kind = "ContributionPenalty" if self._penalty is None else type(self._penalty).__name__
        return f"{type(self).__qualname__}{{'confounder': {self.name!r}, 'penalty': {kind!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`."""
        return {} if self.suppression is None else {"suppression": self.suppression.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        self._state = state_dict.get("suppression")


def _with_penalty(suppression: Suppression, loss: Tensor) -> Tensor:
    # Where two penalties are added, both see the task's own loss.
    task = vars(loss).get("_task_loss", loss)
    total = loss + suppression.penalty(task)
    if total is not loss:
        total._task_loss = task  # type: ignore[attr-defined]
    return total
