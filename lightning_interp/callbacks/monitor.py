"""`ConceptMonitor`: watches what a model uses while Lightning trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_interp.batches import size
from lightning_interp.errors import InterpError, ProbeSetError, nearest
from lightning_interp.events import Event
from lightning_interp.loaders import PaddingCount, probe_loader
from lightning_interp.monitor import DEFAULT_MEASURES, Monitor
from lightning_interp.schedules import Schedule
from lightning_interp.summaries import EventWriter
from lightning_interp.variables import Variable

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the other name of the same package
    from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]


class ConceptMonitor(Callback):
    """Measures how much each concept and each confounder contributes to the output, while the model trains.

    It never changes the run: with it and without it the weights after training are the same bits. On the validation or training
    loop it reads what the loop already runs; hooks are on the model only while a batch is being read.

    Logged, to `trainer.callback_metrics` and to every logger: `contribution/{variable}` (share of output variance, 0…1),
    `effect/{variable}` (logits), `decodability/{layer}/{variable}`, `selectivity/…`, `decodability_accuracy/…`,
    `decodability_auroc/…`, `drift/…`, `sensitivity/…`, `tcav/…`, `mediation/{layer}/{erased}/{variable}` (fraction of an effect
    that is gone), `entanglement/{layer}` (mean cosine), `intervention/{variable}`, `group/worst_accuracy`, `group/gap`,
    `group/accuracy/{cell}`. TensorBoard also gets the equation as text, a heat map, and one chart of all contributions.

    Args:
        variables: concepts and confounders; at least one with labels. One with `examples` is measured at `layers`, in a pass
            of the library's own over its examples at each event.
        layers: names or globs below the LightningModule (`*` stops at a dot, `**` does not); empty: only the output.
        output: the module whose output is explained; None: the result of the LightningModule's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list, else accuracy by group is
            withheld.
        inputs: what passes of the library's own give the model: a key, an index or a dotted path, a list of keys, or a function
            `(model, batch) -> output`; None: the first element of a tuple or list, else the batch itself.
        data: "val" or "train" reads what the loop runs; a DataLoader or Dataset gets a pass of its own.
        every_n_epochs: epochs between events; None: every epoch, unless steps are given.
        every_n_train_steps: optimizer steps between events.
        measures: of "contribution", "decodability", "groups", "entanglement"; and of "sensitivity", "mediation",
            "intervention", which take passes of their own.
        weights: "balanced": every cell of the variables counts the same, where the cells allow it; or "natural".
        interactions: whether two-way products of variables are split from what is unexplained.
        pooling: how a layer's activation becomes one vector per sample: "mean", "first", "last", "masked_mean", or a function.
        max_samples: rows kept as single samples; the length of the training window; inputs kept for own passes.
        dataloader_idx: which validation loader, where there are several.
        cluster: where the id of the source sits that several samples share; intervals then allow for it.
        sample_id: where the sample's id sits; None: its content is its id.
        warn_above: a confounder's debiased share over which one clear warning is given.
        prefix: put before every logged key.
        max_events: events kept; beyond it every other old one is let go.
        seed: of the samples' folds and controls.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> from lightning_interp import Concept, Confounder, ConceptMonitor
        >>> monitor = ConceptMonitor([Concept("digit"), Confounder("grass")], layers=["encoder.*"], target="label")
        >>> monitor.latest is None
        True
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        layers: Sequence[str] = (),
        output: str | None = None,
        target: str | int | Callable[[Any], Any] | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        data: Literal["val", "train"] | DataLoader | Dataset = "val",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        weights: Literal["balanced", "natural"] = "balanced",
        interactions: bool = False,
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        max_samples: int = 4096,
        dataloader_idx: int = 0,
        cluster: str | int | Callable[[Any], Any] | None = None,
        sample_id: str | int | Callable[[Any], Any] | None = None,
        warn_above: float = 0.25,
        prefix: str = "",
        max_events: int = 1000,
        seed: int = 0,
    ) -> None:
        if isinstance(data, str) and data not in ("val", "train"):
            raise InterpError(
                f"`data={data!r}` is none of 'val', 'train', a DataLoader or a Dataset.{nearest(data, ['val', 'train'])}"
            )
        if data == "val" and every_n_train_steps is not None:
            raise InterpError(
                f"`every_n_train_steps={every_n_train_steps}` does not go with `data='val'`: validation runs when the "
                "Trainer's `val_check_interval` says so. Set that, or use data='train' or a DataLoader."
            )
        self.places = {"output": output, "inputs": inputs, "target": target}
        self.data = data
        self.dataloader_idx = dataloader_idx
        self.prefix = prefix
        self.schedule = Schedule(every_n_epochs, every_n_train_steps)
        self.monitor = Monitor(
            None,
            variables,
            layers,
            output,
            target,
            inputs,
            measures,
            weights,
            interactions,
            pooling,
            max_samples,
            cluster,
            sample_id,
            warn_above,
            max_events,
            seed,
        )
        self.monitor.mode = data if isinstance(data, str) else "probe"
        self._watching = ExitStack()
        self._due = False
        self._steps = 0  # optimizer steps, counted once however many optimizers there are
        self._global_step = 0
        self._alarmed: set[str] = set()
        self._writers: dict[int, EventWriter] = {}
        self._padding = PaddingCount(None)

    @property
    def latest(self) -> Event | None:
        """The last event, None before the first."""
        return self.monitor.latest

    @property
    def history(self) -> tuple[Event, ...]:
        """All events, also those before a resume."""
        return self.monitor.history

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; a name that is not there is an error before the first step."""
        self._attach(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the data that is to be watched never comes."""
        self._global_step = trainer.global_step  # not in on_fit_start: a checkpoint's step is restored after it
        if self.data == "val" and not validates(trainer):
            self.monitor.say(
                "`data='val'`: this Trainer runs no validation loop, so there will be no event. "
                "Give it validation data, or use data='train' or a DataLoader."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._discard(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the model: teardown is not called after an exception."""
        self._discard(exception)

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitor.context = trainer.precision_plugin.forward_context
        self.monitor.bind(pl_module)

    def _discard(self, exception: BaseException | None) -> None:
        self._abandon(exception)
        self.monitor.restart()

    def _abandon(self, exception: BaseException | None = None) -> None:
        """Remove the hooks and forget the batch, where its end never came."""
        watching, self._watching = self._watching, ExitStack()
        abandon(watching, exception)

    # --- the validation loop ------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation run is due."""
        self._abandon()
        self._due = not trainer.sanity_checking and self._validation_due(trainer)
        if not self._due:
            return
        if self.monitor.model is not pl_module:  # trainer.validate has no fit start
            self._attach(trainer, pl_module)
        self.monitor.restart()
        if self.data == "val":
            self._padding = PaddingCount(_loader(trainer.val_dataloaders, self.dataloader_idx))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Read the labels and attach the hooks."""
        if self._due and self.data == "val" and dataloader_idx == self.dataloader_idx:
            self._watch(batch, self._padding.real(size(batch)))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the rows in and remove the hooks."""
        self._watching.close()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, before EarlyStopping and ModelCheckpoint look."""
        if self._due:
            self._measure(trainer)
        elif not trainer.sanity_checking and self.latest is not None:
            self._publish(trainer, self.latest)
        self._due = False

    def _validation_due(self, trainer: Trainer) -> bool:
        if self.data == "train" or self.schedule.by_steps:
            return False
        fitting = trainer.state.fn == "fit"
        return not fitting or self.latest is None or self.schedule.epoch_due(trainer.current_epoch)

    # --- the training loop --------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know which samples of the epoch are a sampler's padding."""
        if self.data == "train":
            self._padding = PaddingCount(trainer.train_dataloader)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Within the window before an event, read the labels and attach the hooks."""
        if self.data == "train":
            real = self._padding.real(size(batch))
            if self._in_window(trainer, size(batch), batch_idx):
                self._watch(batch, real)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the rows in, remove the hooks, and measure at a due step."""
        self._watching.close()
        stepped = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        self._steps += stepped
        if stepped and self.data != "val" and self.schedule.step_due(self._steps):
            self._measure(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure at the end of a due epoch, where no validation run does."""
        self._abandon()  # on_train_batch_start may have returned -1
        if self.data == "val" or not self.schedule.epoch_due(trainer.current_epoch):
            return
        if self.data == "train" or not validates(trainer):
            self._measure(trainer, after=1)

    def _in_window(self, trainer: Trainer, rows: int, batch_idx: int) -> bool:
        batches = -(-self.monitor.max_samples // max(1, rows * trainer.world_size))
        if self.schedule.by_steps:
            each = max(1, trainer.accumulate_grad_batches)
            return self.schedule.steps_to_next(self._steps) * each - batch_idx % each <= batches
        if not self.schedule.epoch_due(trainer.current_epoch):
            return False
        total = trainer.num_training_batches
        if total == float("inf"):  # the end is not known: keep the last so many
            self.monitor.window = batches
            return True
        return batch_idx >= total - batches

    # --- events -------------------------------------------------------------------------------------------------------

    def _watch(self, batch: Any, limit: int | None) -> None:
        self._watching.enter_context(self.monitor.watching(batch, limit))

    def _measure(self, trainer: Trainer, after: int = 0) -> None:
        if not isinstance(self.data, str):
            self.monitor.run(probe_loader(self.data))
        try:
            event = self.monitor.event(trainer.global_step, trainer.current_epoch)
        except InterpError as problem:
            # Wrong settings show at the first event; after that, nothing that is measured may end the training.
            if self.latest is None and not (isinstance(problem, ProbeSetError) and problem.skipped):
                raise
            self.monitor.say(f"no event at step {trainer.global_step}: {problem}")
            return
        self._publish(trainer, event)
        if not _dry(trainer):
            self._write(trainer, event, logger_step(trainer) - after)

    def _publish(self, trainer: Trainer, event: Event) -> None:
        # Not `log`: that is gated by log_every_n_steps, averages what two callbacks log, and is not allowed in every hook.
        device = trainer.strategy.root_device
        device = torch.device("cpu") if device.type == "mps" else device
        trainer.callback_metrics.update(
            {key: torch.tensor(value, device=device) for key, value in self._scalars(event).items()}
        )

    def _write(self, trainer: Trainer, event: Event, step: int) -> None:
        scalars = self._scalars(event)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
        if not trainer.is_global_zero:
            return
        fresh = [name for name in self.monitor.suspects(event) if name not in self._alarmed]
        self._alarmed |= set(fresh)
        alarms = [self.monitor.alarm(event, name) for name in fresh]
        for logger in trainer.loggers:
            writer = getattr(logger, "experiment", None)
            if not hasattr(writer, "add_custom_scalars"):
                continue
            if id(writer) not in self._writers:
                self._writers[id(writer)] = EventWriter(writer, [v.name for v in self.monitor.labelled], self.prefix)
            self._writers[id(writer)].write(event, step, alarms)

    def _scalars(self, event: Event) -> dict[str, float]:
        start = f"{self.prefix}/" if self.prefix else ""
        return {start + key: value for key, value in event.scalars().items()}

    # --- state --------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Two monitors in one Trainer need different prefixes."""
        return f"{type(self).__qualname__}{{'prefix': {self.prefix!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`."""
        return {"monitor": self.monitor.state_dict(), "steps": self._steps, "alarmed": sorted(self._alarmed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        self.monitor.load_state_dict(state_dict["monitor"])
        self._steps = state_dict["steps"]
        self._alarmed = set(state_dict["alarmed"])


def _dry(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def abandon(batch: ExitStack, exception: BaseException | None) -> None:
    """Leave what was entered for a batch as if it had failed: its rows are not taken in."""
    problem = exception or RuntimeError("stopped within a batch")
    batch.__exit__(type(problem), problem, problem.__traceback__)


def validates(trainer: Trainer) -> bool:
    """Whether the Trainer runs a validation loop."""
    return bool(trainer.enable_validation) and any(n > 0 for n in trainer.num_val_batches)


def _loader(loaders: Any, index: int) -> Any:
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return loaders[index] if index < len(loaders) else None
    return loaders


def logger_step(trainer: Trainer) -> int:
    """The x that Lightning gives its own metrics at this moment, so that curves line up."""
    if trainer.state.fn != "fit":
        return int(trainer.global_step)
    private = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return int(trainer.global_step - 1 if private is None else private)
