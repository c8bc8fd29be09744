"""`SuppressConfounder`: takes a confounder out while Lightning trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_interp.callbacks.certificates import certificate_path, keep_certificate
from lightning_interp.callbacks.monitor import ConceptMonitor
from lightning_interp.callbacks.probing import Callback, LightningModule, Trainer, log_to_all, logger_step
from lightning_interp.callbacks.training_loss import TrainingLoss
from lightning_interp.callbacks.variables_by_name import find_variable, measuring, monitors_of
from lightning_interp.errors import InterpError, NearestArgument
from lightning_interp.events import Event
from lightning_interp.penalties import Penalty
from lightning_interp.processes import mine, with_others
from lightning_interp.suppression import OWN, Suppression
from lightning_interp.variables import Variable


class SuppressConfounder(NearestArgument, Callback):
    """Adds a penalty on a confounder to the loss, without a change to the LightningModule.

    It acts where the loss is handed to Lightning, before scaling, accumulation, clipping and the strategy: the weights after
    training are those of the same penalty written into `training_step` by hand. What the module itself logs stays the task's
    loss.

    Logged at every step that the Trainer logs: `penalty/{confounder}` (the unweighted term, in squared output units or loss
    units), `penalty_weight/{confounder}` (the multiplier in force), `penalty_scale/{confounder}` (the cap's factor, 0…1).

    A budget and `only_above` read the events of a ConceptMonitor of the Trainer that measures the contribution of the
    confounder to this output, the first that has all of the variables before others; without one, the training batches at the
    end of each epoch, and a warning says so. The multiplier moves after each event, but not before the penalty acts. After
    `fit` what was done and measured stands in `certificate`, and beside the last checkpoint (or else in the logger's folder)
    as `….certificate.json`.

    Args:
        confounder: what should not matter: a `Variable`, or the name of one in a `ConceptMonitor` of the same Trainer. One with
            `examples` goes with a penalty that needs no labels (`GradientPenalty`).
        given: what should matter and goes with it, as variables or names; none with examples.
        penalty: the term; None: `ContributionPenalty`.
        output: the module whose output is explained; None: that of the monitor, else the LightningModule's own forward.
        inputs: what a second forward pass gives the model; None: as the monitor, else the first element of a tuple or list.
        target: where the task's label sits; None: as the monitor, else the second element of a tuple or list.
        loss_fn: per-sample task losses `(output, target) -> [n]`, or `"pkg.mod:name"`; None: cross-entropy, or what fits.
        balance: whether the task's loss also gets cell-balanced weights; of a confounder by examples no cell is known, and it
            gets none.
        weight: λ, 0 or more; None: 1, or what the budget asks for.
        start_epoch: the first epoch (zero-based) in which the penalty acts.
        ramp_epochs: epochs over which it grows to its full weight.
        layer: the module whose activation a penalty on activations is given.
        pooling: how that becomes one vector per sample.
        budget: instead of a weight, the limit that the confounder's part is held under, 0 to 1.
        budget_on: "share" (the debiased share of the output's variance), or "ratio" (its effect over the largest concept's).
        only_above: the penalty, and `balance` with it, acts only while the debiased share is over this, 0 to 1; before the
            first event it acts.

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
        weight: float | None = None,
        start_epoch: int = 2,
        ramp_epochs: int = 1,
        layer: str | None = None,
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        budget: float | None = None,
        budget_on: Literal["share", "ratio"] = "share",
        only_above: float | None = None,
    ) -> None:
        if start_epoch < 0 or ramp_epochs < 0:
            raise InterpError(f"`start_epoch` and `ramp_epochs` expect 0 or more, got {start_epoch} and {ramp_epochs}.")
        self._named = [confounder, *given]
        self._places = {"output": output, "inputs": inputs, "target": target}
        self._penalty = "ContributionPenalty" if penalty is None else type(penalty).__name__
        self._make = partial(
            Suppression,
            None,
            penalty=penalty,
            weight=weight,
            loss_fn=loss_fn,
            balance=balance,
            layer=layer,
            pooling=pooling,
            budget=budget,
            budget_on=budget_on,
            only_above=only_above,
        )
        self.start_epoch, self.ramp_epochs = start_epoch, ramp_epochs
        self.name = confounder if isinstance(confounder, str) else confounder.name
        self.suppression: Suppression | None = None
        self.certificate: dict[str, Any] | None = None
        self._state: Mapping[str, Any] | None = None
        self._loss: TrainingLoss | None = None
        self._monitor: ConceptMonitor | None = None
        self._seen: Event | None = None  # the last that was observed
        self._bound = False
        self._key = self.name
        if all(isinstance(v, Variable) for v in self._named):  # nothing has to wait for a monitor
            self.suppression = self._build(self._named, self._places)

    def _build(self, variables: Sequence[Any], places: Mapping[str, Any]) -> Suppression:
        return self._make(variables[0], variables[1:], **places)

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what was given by name, and stand between the training step and its loss."""
        if self.suppression is None or not self._bound:  # built again: the monitor's places were not known
            self.suppression = self._build([find_variable(v, trainer) for v in self._named], self._filled(trainer))
            self._bound = True
        same = [c for c in trainer.callbacks if isinstance(c, SuppressConfounder) and c.name == self.name]  # type: ignore[attr-defined]
        self._key = self.name if len(same) < 2 else f"{self.name}/{type(self.suppression.term).__name__}"
        self._monitor = measuring(trainer, self.suppression.variables, self.suppression.output)
        self._let_go()
        self.suppression.bind(pl_module, several=not pl_module.automatic_optimization)
        self._loss = TrainingLoss(pl_module, lambda: self._active(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from a checkpoint, which strategies that shard the model read only after `on_fit_start`."""
        if self.suppression is None:
            return
        latest = None if self._monitor is None else self._monitor.latest
        if self._state is not None:
            self.suppression.load_state_dict(mine(self._state["suppression"]))
            self._seen = latest if latest is not None and latest.step == self._state["seen"] else None
            self._state = None
        elif latest is not None and latest.step != trainer.global_step:  # of another run
            self._seen = latest
        last = trainer.max_epochs
        if last is not None and 0 <= last <= self.start_epoch and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # −1: no end
            self.suppression.say(
                f"`start_epoch={self.start_epoch}`: this Trainer stops after {last} epochs (`max_epochs`), so the penalty on "
                f"'{self.name}' never acts. Train longer, or lower `start_epoch`."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on the training batches where no monitor does."""
        if self.suppression is not None and self._monitor is None:
            self.suppression.measure(trainer.global_step, trainer.current_epoch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the training step back; after `fit`, write the certificate."""
        self._let_go()
        if stage == "fit" and self.suppression is not None:
            self._observe()
            path, notes = certificate_path(trainer)
            schedule = {"start_epoch": self.start_epoch, "ramp_epochs": self.ramp_epochs}
            self.certificate = self.suppression.certificate(type(self).__name__, schedule, notes)
            keep_certificate(trainer, path, self.certificate)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the training step back: teardown is not called after an exception."""
        self._let_go()

    def _let_go(self) -> None:
        if self._loss is not None:
            self._loss.remove()
        if self.suppression is not None:
            self.suppression.release()
        self._loss = None

    def _filled(self, trainer: Trainer) -> dict[str, Any]:
        names = {v if isinstance(v, str) else v.name for v in self._named}
        near = (m.places for m in monitors_of(trainer) if names & {v.name for v in m.monitor.variables})
        theirs = next(near, {})
        return {name: theirs.get(name) if value is None else value for name, value in self._places.items()}

    # --- training steps -----------------------------------------------------------------------------------------------

    def _active(self, trainer: Trainer) -> Suppression | None:
        if self.suppression is None or not trainer.training:
            return None
        self._observe()
        self.suppression.factor = self._factor(trainer)
        return self.suppression if self.suppression.factor > 0 else None

    def _observe(self) -> None:
        latest = None if self._monitor is None else self._monitor.latest
        if latest is not None and latest is not self._seen and self.suppression is not None:
            self._seen = latest
            self.suppression.observe(latest)

    def _factor(self, trainer: Trainer) -> float:
        total = trainer.num_training_batches
        each = 1 / total if total and total != float("inf") else 1.0  # of an epoch, one batch; of unknown length: all of it
        done = trainer.current_epoch - self.start_epoch + each * min(trainer.fit_loop.batch_idx + 1, 1 / each)
        if trainer.current_epoch < self.start_epoch:
            return 0.0
        return min(1.0, done / self.ramp_epochs) if self.ramp_epochs else 1.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the term, its weight and its cap."""
        if self.suppression is None or not self.suppression.last:
            return
        found = {f"{key}/{self._key}": value for key, value in self.suppression.last.items()}
        trainer.callback_metrics.update({key: torch.as_tensor(value).float() for key, value in found.items()})
        step, every = logger_step(trainer), trainer.log_every_n_steps  # type: ignore[attr-defined]
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches and batch_idx + 1 != trainer.num_training_batches
        if every and (step + 1) % every == 0 and not accumulating:
            log_to_all(trainer, {key: float(value) for key, value in found.items()}, step, self.suppression.say)

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Holds confounder and penalty, so that two of them in one Trainer do not mix."""
        return f"{type(self).__qualname__}{{'confounder': {self.name!r}, 'penalty': {self._penalty!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`; a collective, as saving one is."""
        if self.suppression is None:
            return {}
        state = with_others(self.suppression.state_dict(), OWN)
        return {"suppression": state, "seen": None if self._seen is None else self._seen.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        self._state = state_dict or None
