"""`Probe`: watches a model run on batches, and takes in one row per sample."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_interp.activations.pooling import Pooling
from lightning_interp.activations.select import device_of
from lightning_interp.batches import Inputs, moved
from lightning_interp.collection import Rows
from lightning_interp.errors import (
    InterpError,
    InterpWarning,
    LostProcessError,
    NearestArgument,
    ProbeSetError,
    alike,
    at_least,
    described,
)
from lightning_interp.loaders import probe_loader
from lightning_interp.passes import Caller, own_pass
from lightning_interp.processes import gathered, together, world
from lightning_interp.progress import bar
from lightning_interp.reading import Reader
from lightning_interp.watcher import Watch, Watcher

E = TypeVar("E")


class Probe(NearestArgument, ABC):
    """What all that measure a running model share: hooks while a batch runs, rows of it, bad batches left out and counted.

    Args:
        reader: reads labels from batches.
        inputs: how a pass of the library's own calls the model.
        patterns: names or globs of the layers to read.
        output: the module whose output is explained; None: the model's own forward.
        pooling: how a layer's activation becomes one vector per sample.
        max_samples: rows kept as single samples, and inputs kept for passes of the library's own.
    """

    def __init__(
        self,
        reader: Reader,
        inputs: Inputs,
        patterns: str | Sequence[str],
        output: str | None,
        pooling: str | Callable[[Tensor], Tensor],
        max_samples: int,
    ) -> None:
        self.inputs = inputs
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self.output = output
        self.pooling = Pooling(pooling)
        self.max_samples = at_least(max_samples, 2, "max_samples")
        self.mode = "probe"
        self.window: int | None = None
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._reader = reader
        self._said: set[str] = set()
        self._unheard: dict[str, str] = {}  # what another process than the first had to say since the last event
        self._ever_committed = False
        self._skipped = 0
        self._bound: Watcher | None = None

    # --- what each does with the rows ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def latest(self) -> Any:
        """The last event, None before the first."""

    @abstractmethod
    def event(self, step: int, epoch: int = 0) -> Any:
        """Measure everything from the rows seen since the last event."""

    def measured(self, step: int, epoch: int = 0, data: Any = None, cut: bool = False) -> Any | None:
        """An `event` in the middle of a training run; None where there is none, which is said.

        Wrong settings are an error at the first event; after that, nothing that is measured may end the training. What fails
        on one of several processes fails on all: none has an event that another has not.

        Args:
            step: optimizer steps done.
            epoch: zero-based.
            data: batches, a `DataLoader` or a `Dataset` to run first; None: the rows that were watched.
            cut: whether rows of this event were lost, which excuses also a first one.
        """
        try:
            if data is not None:
                with together():
                    self.run(probe_loader(data))
            return self.event(step, epoch)
        except Exception as problem:
            self.restart()
            if not cut and self._ends_training(problem):
                raise
            text = f"no event at step {step}: {described(problem)}"
            self.say(text, None if isinstance(problem, InterpError) else f"no event: {type(problem).__name__}")
            return None

    def _ends_training(self, problem: Exception) -> bool:
        if isinstance(problem, LostProcessError):
            return True
        return self.latest is None and not (isinstance(problem, ProbeSetError) and problem.skipped)

    @abstractmethod
    def _take(self, watch: Watch, rows: Rows) -> None:
        """Take in the rows of a batch."""

    # --- the model ----------------------------------------------------------------------------------------------------

    def bind(self, model: nn.Module) -> None:
        """Name the model to watch, and find its layers.

        Raises:
            LayerError: a layer or the output is no submodule of it.
        """
        self._bound = Watcher(model, self.patterns, self.output, self.pooling, self.say)

    @property
    def model(self) -> nn.Module | None:
        """The model that is watched, None before `bind`."""
        return None if self._bound is None else self._bound.model

    @property
    def _watcher(self) -> Watcher:
        if self._bound is None:
            raise InterpError(f"the {type(self).__name__} has no model yet; give `model`, or call `bind(model)`.")
        return self._bound

    def _caller(self) -> Caller:
        watcher = self._watcher
        return Caller(watcher.model, self.inputs, watcher.output, self.pooling, self.context)

    @property
    def _samples_here(self) -> int:
        """Samples that this process keeps: its share of `max_samples`."""
        return -(-self.max_samples // world()[1])

    # --- watching -----------------------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, batch: Any, limit: int | None = None) -> Iterator[None]:
        """Watch the model run on a batch; hooks exist only inside, and an exception inside discards the batch.

        Args:
            batch: what the labels are read from, on any device.
            limit: count only so many of its first samples (the rest is a sampler's padding).
        """
        watcher, watch = self._watcher, self._begin(batch)
        if watch is None:
            yield
            return
        with watcher.hooks(watch):
            yield
        self._commit(watch, limit)

    def run(self, batches: Iterable[Any]) -> None:
        """Run the model on batches of the library's own, quietly, and watch it."""
        watcher = self._watcher
        with own_pass(watcher.model, gradients=False):
            for batch in bar(batches, "measuring"):
                placed = moved(batch, device_of(watcher.model))
                watch = self._begin(placed)
                if watch is None:
                    continue
                with watcher.hooks(watch, root=False), self.context():
                    result = self.inputs.call(watcher.model, placed)
                if watcher.output is None:
                    watch.take(result)
                self._commit(watch, None)

    def restart(self) -> None:
        """Forget the rows seen since the last event."""
        if self._bound is not None:
            self._bound.refresh()
        self._skipped = 0

    def _begin(self, batch: Any) -> Watch | None:
        try:
            return Watch(batch, self._reader.read(batch))
        except Exception as problem:  # a label function is the user's: it may raise anything
            self._bad(problem)
            return None

    def _commit(self, watch: Watch, limit: int | None) -> None:
        try:
            self._take(watch, self._watcher.rows(watch, limit))
        except Exception as problem:  # what a batch holds is the user's: nobody knows what may go wrong with it
            self._bad(problem)
            return
        self._ever_committed = True

    def _bad(self, problem: Exception) -> None:
        """A batch that cannot be used: an error while nothing ever worked, later it is left out, counted, and said once."""
        if not self._ever_committed:
            raise problem
        self._skipped += 1
        own = isinstance(problem, InterpError)  # the text of others may be another one every time
        self.say(f"a batch was left out: {described(problem)}", None if own else f"left out: {type(problem).__name__}")

    def say(self, text: str, key: str | None = None) -> None:
        """Warn of something, once in a run and from one process; numbers in it make no other text."""
        key = key or alike(text)
        if key not in self._said:
            self._said.add(key)
            if world()[0] == 0:
                warnings.warn(text, InterpWarning, stacklevel=4)
            else:
                self._unheard[key] = text

    def _listen(self) -> None:
        """The first process says what only others had to say: a collective."""
        for rank, texts in enumerate(gathered(self._unheard)):
            for key, text in texts.items():
                self.say(f"process {rank}: {text}", key)
        self._unheard = {}


def thinned(history: tuple[E, ...], most: int) -> tuple[E, ...]:
    """A history of `most` events or fewer: down-sampled, not cut off.

    The first and the latest stay, every other one between them goes.
    """
    return history if len(history) <= most else (*history[:-1:2], history[-1])
