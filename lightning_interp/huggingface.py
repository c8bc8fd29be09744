"""`WatchedTrainer`: Hugging Face's `Trainer` with a `Monitor` on its evaluations and a `Suppression` in its loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_interp.activations.quiet import quiet
from lightning_interp.batches import size
from lightning_interp.errors import InterpError
from lightning_interp.monitor import Monitor
from lightning_interp.processes import mine, with_others
from lightning_interp.summaries import EventWriter
from lightning_interp.suppression import OWN, Suppression

__all__ = ["WatchedTrainer"]

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError("lightning_interp.huggingface needs `pip install 'lightning-interp[huggingface]'`.") from error

STATE_NAME = "lightning_interp.pt"  # in a checkpoint's folder


class WatchedTrainer(Trainer):
    """A `transformers.Trainer` that measures at every evaluation, and adds penalties to the loss it trains with.

    It is used as `Trainer` is; among several bases it goes first (`class Mine(WatchedTrainer, SFTTrainer)`). What the monitor
    finds is among the metrics of the evaluation, as `eval_contribution/grass`: in every logger, in `log_history`, and for
    `metric_for_best_model`. TensorBoard, where `report_to` names it, gets what `ConceptMonitor` gives it. A penalty's term, its
    weight and its cap are logged with the loss. Watching alone changes no weight and no random number.

    Labels of variables that the model's forward does not take must stay in the batch:
    `TrainingArguments(remove_unused_columns=False)`; the model is given only what its forward names. Layers and output are
    named below the model (`"bert.encoder.layer.0"`, `output="classifier"`), passes of the library's own need
    `inputs=["input_ids", "attention_mask"]`, and the task's label is usually `target="labels"`.

    A penalty acts from the first step on; a schedule is a `TrainerCallback` that sets `suppression.factor`. Budgets read the
    monitor's events, and without a monitor the training batches at the end of each epoch. Under gradient accumulation a term
    counts as its batch's loss does. State is in the checkpoints, and comes back with `resume_from_checkpoint`.

    Tried on the CPU: one process, and two of `torchrun`; not with DataParallel, DeepSpeed or FSDP.

    Args:
        *args: as of `Trainer`.
        monitor: what watches evaluations, made without a model or with this one.
        suppressions: penalties for the loss, made likewise.
        watched: which evaluation is watched, by its `metric_key_prefix`; of several data sets one, `"eval_{name}"`.
        **kwargs: as of `Trainer`.

    Raises:
        InterpError: a variable's label would be taken out of the batches.

    Example:
        >>> from lightning_interp import Concept, Confounder, Monitor, Suppression
        >>> from lightning_interp.huggingface import WatchedTrainer  # doctest: +SKIP
        >>> variables = [Concept("labels"), Confounder("grass")]
        >>> monitor = Monitor(None, variables, output="classifier", inputs=["input_ids", "attention_mask"], target="labels")
        >>> suppression = Suppression(None, variables[1], variables[:1], output="classifier", target="labels")
        >>> trainer = WatchedTrainer(model, args, monitor=monitor, suppressions=[suppression])  # doctest: +SKIP
    """

    def __init__(
        self,
        *args: Any,
        monitor: Monitor | None = None,
        suppressions: Sequence[Suppression] = (),
        watched: str = "eval",
        **kwargs: Any,
    ) -> None:
        self.monitor = monitor
        self.suppressions = tuple(suppressions)
        self.watched = watched
        self._watching = False
        self._heeds_items: bool | None = None
        self._writers: dict[int, EventWriter] = {}
        self._alarmed: set[str] = set()
        self._state: Mapping[str, Any] | None = None
        super().__init__(*args, **kwargs)
        self._check_columns()
        if monitor is not None:
            monitor.mode = "val"
            monitor.context = self.compute_loss_context_manager
        self.add_callback(_Ends(self))

    def _check_columns(self) -> None:
        if not self.args.remove_unused_columns:
            return
        variables = [*(self.monitor.labelled if self.monitor else ()), *(v for s in self.suppressions for v in s.variables)]
        for v in variables:
            key = v.label if isinstance(v.label, str) and ":" not in v.label else None
            if key is not None and key.split(".")[0] not in self._taken():
                raise InterpError(
                    f"`remove_unused_columns=True` takes '{key}', the label of '{v.name}', out of every batch, for the model's "
                    "forward does not know it. Set `TrainingArguments(remove_unused_columns=False)`: the model is still given "
                    "only what it knows."
                )

    def _taken(self) -> set[str]:
        """What the model's forward takes, as `Trainer` finds it, which looks behind adapters."""
        find = getattr(self, "_set_signature_columns_if_needed", None)  # private
        if find is None:
            return {*inspect.signature(self._net.forward).parameters, *self.label_names}
        find()
        return set(self._signature_columns or ())

    def _known(self, inputs: Any) -> Any:
        known = self._taken()
        if not isinstance(inputs, Mapping) or not known & inputs.keys():  # forward(**batch) names nothing
            return inputs
        return {key: value for key, value in inputs.items() if key in known}

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; a checkpoint's state of the monitor and the penalties comes back with it."""
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self._state = None
        if found:
            path = Path(found) / STATE_NAME
            self._state = torch.load(path, weights_only=True) if path.exists() else None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for s in self.suppressions:
                s.release()

    def begin(self) -> None:
        """Bind to the model, which `model_init` may just have made, and go on from a checkpoint."""
        if self.monitor is not None:
            self.monitor.bind(self._net)
        for s in self.suppressions:
            s.bind(self._net)
        if self._state is None:
            return
        if self.monitor is not None and self._state["monitor"] is not None:
            self.monitor.load_state_dict(self._state["monitor"])
        for s, state in zip(self.suppressions, self._state["suppressions"], strict=True):
            s.load_state_dict(mine(state))

    def save_state_in(self, folder: Path) -> None:
        """Write the state of the monitor and the penalties into a checkpoint's folder: a collective."""
        suppressions = [with_others(s.state_dict(), OWN) for s in self.suppressions]
        if (self.monitor is not None or suppressions) and folder.is_dir() and self.is_world_process_zero():
            monitor = None if self.monitor is None else self.monitor.state_dict()
            torch.save({"monitor": monitor, "suppressions": suppressions}, folder / STATE_NAME)

    @property
    def _net(self) -> nn.Module:
        """The model without the wrappers of accelerate."""
        return cast(nn.Module, self.model)

    @property
    def _epoch(self) -> int:
        """Zero-based, of the step just done."""
        return max(0, math.ceil(self.state.epoch or 0) - 1)

    # --- training -----------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss, while training with the penalties."""
        acting = self.suppressions if model.training else ()
        with ExitStack() as stack:
            for s in acting:
                stack.enter_context(s.watching(inputs))
            found: Any = super().compute_loss(model, self._known(inputs), return_outputs, num_items_in_batch)
        if not acting:
            return found
        loss, outputs = found if return_outputs else (found, None)
        scale = self._scale(inputs, num_items_in_batch)
        task = loss if scale == 1 else loss / scale
        for s in acting:
            # In half precision accelerate gives a copy of the model's result, which the loss inside the model has not seen.
            copied = s.output is None and not s.depends(task)
            term = s.penalty(None if copied else task)
            loss = loss + (term if scale == 1 else scale * term)
        return (loss, outputs) if return_outputs else loss

    def _scale(self, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None) -> float:
        """What the loss is, times the mean over this process's batch: `Trainer` takes means over all batches of a step."""
        parts, processes = int(self.current_gradient_accumulation_steps), int(self.accelerator.num_processes)
        told = getattr(self, "loss_is_scaled_for_ga", None)
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        if parts * processes == 1 or not (counted or self.compute_loss_func is not None if told is None else told):
            return 1.0  # `Trainer` divides it afterwards
        if told or self.compute_loss_func or self.label_smoother or self._heeds(inputs, num_items_in_batch):
            return 1.0 / parts
        return float(processes if self.args.average_tokens_across_devices else 1)  # multiplied all the same

    def _heeds(self, inputs: Mapping[str, Any], num_items_in_batch: Any) -> bool:
        """Whether the model's loss divides by the count; `BertForSequenceClassification`, for one, takes it and ignores it."""
        if self._heeds_items is None:
            self._heeds_items = self._loss(inputs, num_items_in_batch) != self._loss(inputs, 2 * num_items_in_batch)
        return self._heeds_items

    def _loss(self, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int) -> float:
        """The model's own loss for a count of items, found unnoticed."""
        with quiet(self._net), torch.no_grad(), self.compute_loss_context_manager():
            result = self._net(**self._known(inputs), num_items_in_batch=num_items_in_batch)
        return float(result["loss"] if isinstance(result, Mapping) else result[0])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; with the training loss go the penalties' terms."""
        if "loss" in logs:
            for s in self.suppressions:
                logs = {**logs, **{f"{key}/{s.confounder.name}": float(value) for key, value in s.last.items()}}
        super().log(logs, *args, **kwargs)

    def measure_training(self) -> None:
        """Where no monitor does: measure on the latest training batches, for budgets."""
        if self.monitor is None:
            for s in self.suppressions:
                s.measure(self.state.global_step, self._epoch)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The evaluation, watched; what was measured is added to its metrics."""
        arguments = (dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        monitor = self.monitor
        if monitor is None or description == "Prediction" or metric_key_prefix != self.watched:
            return super().evaluation_loop(*arguments)
        if monitor.model is not self._net:
            monitor.bind(self._net)
        monitor.restart()
        self._watching = True
        try:
            output: Any = super().evaluation_loop(*arguments)
        finally:
            self._watching = False
        event = monitor.measured(self.state.global_step, self._epoch)
        if event is not None:
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in event.scalars().items()})
            self._write(event)
            for s in self.suppressions:
                s.observe(event)
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """One batch of an evaluation."""
        inputs = self._prepare_inputs(dict(inputs))
        with ExitStack() as stack:
            if self._watching and self.monitor is not None:
                stack.enter_context(self.monitor.watching(inputs, self._real(size(inputs))))
            return super().prediction_step(model, self._known(inputs), prediction_loss_only, ignore_keys)

    def _real(self, rows: int) -> int | None:
        """How many samples of this process's batch are no padding; None: all."""
        state = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        return min(rows, max(0, state.remainder - self.accelerator.process_index * rows))

    def _write(self, event: Any) -> None:
        if self.monitor is None:
            return
        found = (getattr(callback, "tb_writer", None) for callback in self.callback_handler.callbacks)
        fresh = [name for name in self.monitor.suspects(event) if name not in self._alarmed]
        self._alarmed |= set(fresh)
        alarms = [self.monitor.alarm(event, name) for name in fresh]
        for writer in (w for w in found if w is not None):
            if id(writer) not in self._writers:
                names = [v.name for v in self.monitor.labelled]
                self._writers[id(writer)] = EventWriter(writer, names, self.watched)  # `Trainer` logs eval_x as eval/x
            self._writers[id(writer)].write(event, self.state.global_step, alarms)


class _Ends(TrainerCallback):
    """Tells a `WatchedTrainer` of what it has no method for.

    Args:
        trainer: whom.
    """

    def __init__(self, trainer: WatchedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is there, and a checkpoint's weights are in it."""
        self._trainer.begin()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the evaluation of the epoch."""
        self._trainer.measure_training()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a checkpoint was written."""
        self._trainer.save_state_in(Path(args.output_dir) / f"checkpoint-{state.global_step}")
