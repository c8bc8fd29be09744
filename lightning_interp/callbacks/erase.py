"""`EraseConfounder`: erases a confounder from a layer while Lightning trains, evaluates and predicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from lightning_interp.callbacks.certificates import certificate_path, keep_certificate
from lightning_interp.callbacks.probing import Callback, LightningModule, Trainer, abandon, validates
from lightning_interp.callbacks.variables_by_name import find_variable, measuring
from lightning_interp.erasure import OWN, Erasure
from lightning_interp.errors import InterpError, NearestArgument, nearest
from lightning_interp.processes import mine, with_others
from lightning_interp.variables import Variable

log = logging.getLogger(__name__)


class EraseConfounder(NearestArgument, Callback):
    """Erases a confounder from a layer's activation in every forward pass of the Trainer.

    *Formula.* h' = h − W⁺PW(h − mean), W the inverse root of the activation's covariance, P the projection on W Σ_hz (LEACE,
    Belrose et al. 2023): the smallest affine edit after which no linear function of the pooled activation tells the
    confounder, under weights that count every cell of the confounder and the given variables alike. It is fitted anew while
    the model trains; the gradient goes straight through. *When it helps:* at the layer that feeds a linear output, fitted to
    rows that are not trained on (`data="val"`) and together with balanced weights of the task's loss
    (`SuppressConfounder(penalty=BalancedReweighting())`). *When not:* fitted to training rows that the net knows by heart, for
    they do not show what it does with others; before layers that are not linear, which read the confounder in other ways;
    without balanced weights, for the gradient writes the confounder anew at every step. *Cost:* one d × d solve at every fit.

    *Measured* (digits on grass, 15 epochs, test digits, seeds 0 and 1). Worst group: plain net 0.22, 0.05; balanced weights
    alone 0.32, 0.40. Erased at the layer that feeds the head, with balanced weights: the defaults 0.53, 0.34, the true
    do(grass) still 5.1, 5.7 logits (balanced weights alone: 5.6, 6.6), which is no clear gain; `data="val"` in the last epoch
    only 0.80, 0.68, do(grass) 0.06, 0.02, accuracy 0.87, 0.84. Without balanced weights: the defaults 0.18, 0.02, no better
    than nothing; `data="val"` in the last epoch 0.66, 0.70. One block earlier (mean over space): 0.42, 0.45, and with
    `data="val"` 0.51, 0.29. On shortcuts that nobody built, with `data="val"`: on Adult 0.76 (balanced weights alone 0.73);
    on white frames of pictures and in a hospital that was left out no better than balanced weights (docs/measured.md).

    **The erasure lives in this callback.** Sanity check, validation, test and prediction of a Trainer that has it use the last
    fit, which is saved in the checkpoint. The weights are not edited: the model alone, without the callback, is not erased.
    After `fit` what was done and measured stands in `certificate`, and beside the last checkpoint (or else in the logger's
    folder) as `….certificate.json`: the direction that was erased, how well a linear probe still reads the confounder from rows
    that came after the fit, and the events of a ConceptMonitor before and after.

    Args:
        confounder: what should not matter: a `Variable`, or the name of one in a `ConceptMonitor` of the same Trainer.
        layer: the module whose output is edited, by its dotted name; `"encoder.3:hidden"` names the entry of a dict.
        given: what should matter and goes with it, as variables or names: it is left in.
        pooling: "mean", "first", "last" or "masked_mean": what of the activation is erased, see `Erasure`.
        start_rows: rows before the first fit.
        memory_rows: how fast the past fades, in rows: after so many, by a factor of e.
        every_n_steps: training batches between two fits, of data="train".
        ridge: damping of the activation's covariance, in units of its mean eigenvalue.
        start_epoch: the first epoch (zero-based) in which it learns.
        data: whose rows it is fitted to: "train", anew every so many batches; "val", those of the first validation loader, anew
            after every validation run. With "val" the validation labels have a part in the model: judge it on others.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> from lightning_interp import Concept, Confounder, EraseConfounder
        >>> erase = EraseConfounder(Confounder("grass"), layer="encoder", given=[Concept("digit")])
    """

    def __init__(
        self,
        confounder: str | Variable,
        layer: str,
        given: Sequence[str | Variable] = (),
        pooling: str = "mean",
        start_rows: int = 256,
        memory_rows: int = 1024,
        every_n_steps: int = 5,
        ridge: float = 1e-2,
        start_epoch: int = 0,
        data: Literal["train", "val"] = "train",
    ) -> None:
        if start_epoch < 0:
            raise InterpError(f"`start_epoch` expects 0 or more, got {start_epoch}.")
        if data not in ("train", "val"):
            raise InterpError(f"`data={data!r}` is none of 'train' and 'val'.{nearest(data, ['train', 'val'])}")
        self._named = [confounder, *given]
        self._numbers = (start_rows, memory_rows, every_n_steps, ridge)
        self.layer, self.pooling, self.start_epoch, self.data = layer, pooling, start_epoch, data
        self.name = confounder if isinstance(confounder, str) else confounder.name
        self.erasure: Erasure | None = None
        self._state: Mapping[str, Any] | None = None
        self._standing = ExitStack()
        self._batch = ExitStack()
        self._told = False
        self._fitted_at: int | None = None  # optimizer steps done at the first fit
        self.certificate: dict[str, Any] | None = None
        if all(isinstance(v, Variable) for v in self._named):  # nothing has to wait for a monitor
            self.erasure = self._build(self._named)

    def _build(self, variables: Sequence[Any]) -> Erasure:
        return Erasure(None, variables[0], self.layer, variables[1:], self.pooling, *self._numbers)

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand at the layer: before the hooks of a monitor, which is to see what is left."""
        self._attach(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the rows that it is to be fitted to never come."""
        if self.erasure is not None and self.data == "val" and not validates(trainer):
            self.erasure.say(
                "`data='val'`: this Trainer runs no validation loop, so nothing will be erased. "
                "Give it validation data, or use data='train'."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand at the layer, where there was no fit start."""
        self._evaluate(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand at the layer."""
        self._evaluate(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand at the layer."""
        self._evaluate(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the layer; after `fit`, write the certificate."""
        self._leave(None)
        if stage == "fit" and self.erasure is not None:
            path, notes = certificate_path(trainer)
            settings = {"start_epoch": self.start_epoch, "data": self.data}
            monitor = measuring(trainer, self.erasure.variables, None)
            history = () if monitor is None else monitor.history
            # An event at the step of the first fit was measured just before it.
            before = [e for e in history if self._fitted_at is None or e.step <= self._fitted_at]
            after = history[len(before) :]
            ends = before[-1] if before else None, after[-1] if after else None
            self.certificate = self.erasure.certificate(type(self).__name__, settings, *ends, notes)
            keep_certificate(trainer, path, self.certificate)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the layer: teardown is not called after an exception."""
        self._leave(exception)

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        erasure = self._attach(trainer, pl_module)
        if erasure.eraser is None:
            erasure.say(f"layer '{self.layer}' is not erased: there is no fit, for {erasure.obstacle}")

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> Erasure:
        self._leave(None)
        if self.erasure is None:
            self.erasure = self._build([find_variable(v, trainer) for v in self._named])
        self._go_on(self.erasure)
        self.erasure.bind(pl_module)
        self._standing.enter_context(self.erasure.applied())
        return self.erasure

    def _go_on(self, erasure: Erasure) -> None:
        if self._state is not None:
            erasure.load_state_dict(mine(self._state))
            self._state = None

    def _leave(self, exception: BaseException | None) -> None:
        self._abandon(exception)
        self._standing.close()

    def _abandon(self, exception: BaseException | None = None) -> None:
        """Forget the batch, where its end never came."""
        batch, self._batch = self._batch, ExitStack()
        abandon(batch, exception)

    # --- training -----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the labels; the activation is taken in by the hook."""
        self._abandon()  # of a batch before that was stopped
        if self.erasure is None:
            return
        learns = self.data == "train" and trainer.current_epoch >= self.start_epoch
        self._batch.enter_context(self.erasure.watching(batch) if learns else self.erasure.applied(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Learn from the batch, and at a due step fit anew."""
        self._batch.close()
        self._note_fit(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget a batch without an end: `on_train_batch_start` may have returned −1."""
        self._abandon()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say once where the erasure lives, or why there is none."""
        erasure = self.erasure
        if erasure is None:
            return
        if erasure.eraser is None:
            erasure.say(f"'{self.name}' was never erased at layer '{self.layer}': there is no fit, for {erasure.obstacle}")
        elif not self._told and trainer.is_global_zero:
            self._told = True
            log.info(
                "'%s' is erased at layer '%s' by this callback, whose last fit is in the checkpoint. "
                "The weights are not edited: without the callback the model is not erased.",
                self.name,
                self.layer,
            )

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Know which tokens count; while fitting to validation rows, learn."""
        if self.erasure is not None and dataloader_idx == 0 and self._learns_here(trainer):
            self._batch.enter_context(self.erasure.learning(batch))
        else:
            self._enter(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit anew to the validation rows."""
        if self.erasure is not None and self._learns_here(trainer):
            self.erasure.refit()
            self._note_fit(trainer)

    def _note_fit(self, trainer: Trainer) -> None:
        if self._fitted_at is None and self.erasure is not None and self.erasure.eraser is not None:
            self._fitted_at = trainer.global_step

    def _learns_here(self, trainer: Trainer) -> bool:
        running = trainer.state.fn == "fit" and not trainer.sanity_checking
        return self.data == "val" and running and trainer.current_epoch >= self.start_epoch

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The batch is over."""
        self._batch.close()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Know which tokens count."""
        self._enter(batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The batch is over."""
        self._batch.close()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Know which tokens count."""
        self._enter(batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The batch is over."""
        self._batch.close()

    def _enter(self, batch: Any) -> None:
        if self.erasure is not None:
            self._batch.enter_context(self.erasure.applied(batch))

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Holds confounder and layer, so that two of them in one Trainer do not mix."""
        return f"{type(self).__qualname__}{{'confounder': {self.name!r}, 'layer': {self.layer!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`; a collective, as saving one is."""
        if self.erasure is None:
            return {}
        return {"erasure": with_others(self.erasure.state_dict(), OWN), "fitted_at": self._fitted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        self._state, self._fitted_at = state_dict.get("erasure"), state_dict.get("fitted_at")
        if self.erasure is not None and self.erasure.model is not None:  # strategies that shard read it after `on_fit_start`
            self._go_on(self.erasure)
