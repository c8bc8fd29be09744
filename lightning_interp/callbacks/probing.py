"""`ProbingCallback`: when a `Probe` watches and when it measures, while Lightning trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_interp.batches import size
from lightning_interp.errors import InterpError, NearestArgument, described, nearest
from lightning_interp.loaders import PaddingCount
from lightning_interp.probe import Probe
from lightning_interp.progress import bars
from lightning_interp.schedules import Schedule

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the other name of the same package
    from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]

P = TypeVar("P", bound=Probe)


class ProbingCallback(NearestArgument, Callback, Generic[P]):
    """Feeds a `Probe` from the validation loop, the training loop or data of its own, and asks it for events when they are due.

    It never changes the run: it reads what the loop already runs, and hooks are on the model only while a batch is being read.

    Args:
        probe: what watches and measures.
        data: "val", "train", a DataLoader or a Dataset.
        every_n_epochs: epochs 0, n, 2n, … are due.
        every_n_train_steps: optimizer steps n, 2n, … are due.
        dataloader_idx: which validation loader, where there are several.
        prefix: put before every logged key.

    Raises:
        InterpError: the data and the schedule do not go together.
    """

    def __init__(
        self,
        probe: P,
        data: Literal["val", "train"] | DataLoader | Dataset,
        every_n_epochs: int | None,
        every_n_train_steps: int | None,
        dataloader_idx: int,
        prefix: str,
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
        self.probe = probe
        self.data = data
        self.dataloader_idx = dataloader_idx
        self.prefix = prefix
        self.schedule = Schedule(every_n_epochs, every_n_train_steps)
        self.probe.mode = data if isinstance(data, str) else "probe"
        self._watching = ExitStack()
        self._due = False
        self._steps = 0  # optimizer steps, counted once however many optimizers there are
        self._global_step = 0
        self._padding = PaddingCount(None)
        self._watched = 0  # training batches since the last event
        self._cut = 0  # of these, those before a checkpoint that was resumed from: their rows are lost

    @abstractmethod
    def _show(self, writers: Sequence[Any], event: Any, step: int) -> None:
        """Write what TensorBoard gets beside the scalars, on the first process only."""

    @property
    def state_key(self) -> str:
        """Two of a kind in one Trainer need different prefixes."""
        return f"{type(self).__qualname__}{{'prefix': {self.prefix!r}}}"

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`."""
        return {"steps": self._steps, "watched": self._watched + self._cut}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped; but of a training window that a checkpoint cuts, the rows before are lost."""
        self._steps, self._cut = state_dict["steps"], state_dict.get("watched", 0)

    # --- the run's ends -----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers; a name that is not there is an error before the first step."""
        self._attach(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the data that is to be watched never comes."""
        self._global_step = trainer.global_step  # not in on_fit_start: a checkpoint's step is restored after it
        latest = self.probe.latest
        if latest is not None and latest.step > trainer.global_step:
            self.probe.say(
                f"this {type(self).__name__} holds events of another run, up to step {latest.step}: they stay before those of "
                f"this one, which begins at step {trainer.global_step}. Give each run one of its own."
            )
        if self._cut:
            self.probe.say(
                f"the run was stopped within the window of the next event: the first {self._cut} batches are not in it"
            )
        if self.data == "val" and not validates(trainer):
            self.probe.say(
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
        self.probe.context = trainer.precision_plugin.forward_context
        self.probe.bind(pl_module)

    def _discard(self, exception: BaseException | None) -> None:
        self._abandon(exception)
        self.probe.restart()
        self._cut, self._watched = self._cut + self._watched, 0

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
        if self.probe.model is not pl_module:  # trainer.validate has no fit start
            self._attach(trainer, pl_module)
        self.probe.restart()
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
        elif not trainer.sanity_checking and self.probe.latest is not None:
            self._publish(trainer, self.probe.latest)
        self._due = False

    def _validation_due(self, trainer: Trainer) -> bool:
        if self.data == "train" or self.schedule.by_steps:
            return False
        fitting = trainer.state.fn == "fit"
        return not fitting or self.probe.latest is None or self.schedule.epoch_due(trainer.current_epoch)

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
        batches = -(-self.probe.max_samples // max(1, rows * trainer.world_size))
        if self.schedule.by_steps:
            each = max(1, trainer.accumulate_grad_batches)
            return self.schedule.steps_to_next(self._steps) * each - batch_idx % each <= batches
        if not self.schedule.epoch_due(trainer.current_epoch):
            return False
        total = trainer.num_training_batches
        if total == float("inf"):  # the end is not known: keep the last so many
            self.probe.window = batches
            return True
        return batch_idx >= total - batches

    # --- events ------------------------------------------------------------------------------------------------------

    def _watch(self, batch: Any, limit: int | None) -> None:
        self._watched += self.data == "train"
        self._watching.enter_context(self.probe.watching(batch, limit))

    def _measure(self, trainer: Trainer, after: int = 0) -> None:
        with bars(trainer.progress_bar_callback is not None):
            data = None if isinstance(self.data, str) else self.data
            event = self.probe.measured(trainer.global_step, trainer.current_epoch, data, cut=self._cut > 0)
        self._watched = self._cut = 0
        if event is None:
            return
        self._publish(trainer, event)
        if not _dry(trainer):
            self._write(trainer, event, logger_step(trainer) - after)

    def _publish(self, trainer: Trainer, event: Any) -> None:
        # Not `log`: that is gated by log_every_n_steps, averages what two callbacks log, and is not allowed in every hook.
        device = trainer.strategy.root_device
        device = torch.device("cpu") if device.type == "mps" else device
        trainer.callback_metrics.update(
            {key: torch.tensor(value, device=device) for key, value in self._scalars(event).items()}
        )

    def _write(self, trainer: Trainer, event: Any, step: int) -> None:
        log_to_all(trainer, self._scalars(event), step, self.probe.say)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            with forgiven(logger, self.probe.say):
                writer = getattr(logger, "experiment", None)
                if hasattr(writer, "add_custom_scalars"):
                    self._show([writer], event, step)

    def _scalars(self, event: Any) -> dict[str, float]:
        start = f"{self.prefix}/" if self.prefix else ""
        return {start + key: value for key, value in event.scalars().items()}


@contextmanager
def forgiven(logger: Any, say: Callable[[str, str], None]) -> Iterator[None]:
    """A logger that fails with what is ours, for a full disk or a lost connection, is said, and training goes on."""
    try:
        yield
    except Exception as problem:
        name = type(logger).__name__
        say(f"{name} could not take what was measured: {described(problem)}", f"logger {name}: {type(problem).__name__}")


def log_to_all(trainer: Trainer, scalars: dict[str, float], step: int, say: Callable[[str, str], None]) -> None:
    """Give numbers to every logger of the Trainer."""
    for logger in trainer.loggers:
        with forgiven(logger, say):
            logger.log_metrics(scalars, step=step)


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
