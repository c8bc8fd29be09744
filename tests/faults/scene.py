"""A training run in which something goes wrong in the second of three epochs, and what must be true afterwards."""

from __future__ import annotations

import errno
import random
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from callbacks.boring import Memory, bits, hooks, streams
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_interp import Concept, ConceptMonitor, Confounder, DiscoverFeatures, EraseConfounder, SuppressConfounder
from lightning_interp.errors import InterpWarning
from lightning_interp.penalties import (
    BalancedReweighting,
    ContributionPenalty,
    GradientPenalty,
    GroupDRO,
    IndependencePenalty,
    InvariancePenalty,
    Penalty,
    Sum,
)

EPOCHS, TRAIN, VAL, BATCH = 3, 64, 200, 16
OWN = ("sensitivity", "mediation", "intervention")
ALL = ("contribution", "decodability", "groups", *OWN, "entanglement")


class Now:
    """Where the run is: faults strike in epoch 1, when everything has worked once."""

    epoch = -1
    step = False  # within a step of the user's
    batch = 0


def struck() -> bool:
    """Whether a fault is due."""
    return Now.epoch == 1


def full() -> OSError:
    """What a full disk says."""
    return OSError(errno.ENOSPC, "No space left on device")


# --- what is trained --------------------------------------------------------------------------------------------------


class Items(Dataset):
    """{"x", "moo", "grass"}: grass goes with moo five times in eight."""

    def __init__(self, n: int, seed: int, shape: tuple[int, ...] = (6,)) -> None:
        i = torch.arange(n)
        self.moo = i % 2
        self.grass = torch.where(i // 2 % 8 < 3, 1 - self.moo, self.moo)
        self.x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
        self.x[..., 0] += (2.0 * self.moo - 1).view(-1, *[1] * (len(shape) - 1))
        self.x[..., 1] = (2.0 * self.grass - 1).view(-1, *[1] * (len(shape) - 1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "moo": self.moo[i], "grass": self.grass[i]}


def untouched(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class Collate:
    """Puts samples together; in epoch 1 the second batch is changed."""

    def __init__(self, change: Callable[[dict[str, Any]], Any]) -> None:
        self.change = change
        self.count = 0

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        batch = default_collate(samples)
        if Now.epoch != getattr(self, "epoch", None):
            self.epoch, self.count = Now.epoch, 0
        self.count += 1
        return self.change(batch) if struck() and self.count == 2 else batch


def loader(n: int, seed: int, change: Callable[[Any], Any] = untouched, batch: int = BATCH, **options: Any) -> DataLoader:
    return DataLoader(Items(n, seed, **options), batch, collate_fn=Collate(change))


class Net(LightningModule):
    """Dropout and batch norm, so that one draw or one forward pass too many is seen in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.Tanh())
        self.frozen = nn.BatchNorm1d(8).requires_grad_(False).eval()
        self.head = nn.Linear(8, 2)
        self.most: list[int] = []  # hooks in each step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.encoder(x)))

    def on_train_epoch_start(self) -> None:
        Now.epoch = self.current_epoch

    def on_train_start(self) -> None:
        Now.epoch = self.current_epoch

    def loss(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch["x"]), batch["moo"].long())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        Now.step, Now.batch = True, batch_idx
        try:
            return self.loss(batch, batch_idx)
        finally:
            Now.step = False
            self.most.append(hooks(self))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        Now.step = True
        try:
            self.log("val_loss", self.loss(batch, batch_idx), batch_size=len(batch["x"]))
        finally:
            Now.step = False
            self.most.append(hooks(self))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)

    def train_dataloader(self) -> Any:
        return loader(TRAIN, 1)

    def val_dataloader(self) -> Any:
        return loader(VAL, 2, batch=40)


# --- what watches -----------------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """What the callbacks are given by the user: any of it may fail."""

    moo: Any = "moo"
    grass: Any = "grass"
    kind: str = "auto"
    target: Any = "moo"
    inputs: Any = "x"
    do: Callable[[Any], Any] = lambda batch: swapped(batch)
    pooling: Any = "mean"
    loss_fn: Any = None
    layer: str = "encoder"
    output: str = "head"
    own: Callable[[], Any] = lambda: loader(VAL, 2, batch=40)
    folder: Path | None = None

    @property
    def variables(self) -> list[Any]:
        return [Concept("moo", label=self.moo), Confounder("grass", label=self.grass, kind=self.kind, intervention=self.do)]

    @property
    def places(self) -> dict[str, Any]:
        return {"output": self.output, "target": self.target, "inputs": self.inputs}


def swapped(batch: dict[str, Any]) -> dict[str, Any]:
    x = batch["x"].clone()
    x[..., 1] = -x[..., 1]
    return {**batch, "x": x, "grass": 1 - batch["grass"]}


def monitor(p: Parts, **options: Any) -> ConceptMonitor:
    options = {"layers": [p.layer], "pooling": p.pooling, "warn_above": 1e9, **options}
    return ConceptMonitor(p.variables, **p.places, **options)


def suppress(p: Parts, penalty: Penalty | None, **options: Any) -> SuppressConfounder:
    moo, grass = p.variables
    options = {"start_epoch": 0, "ramp_epochs": 0, "loss_fn": p.loss_fn, **options}
    if penalty is not None and penalty.needs_layer:
        options["layer"] = p.layer
    return SuppressConfounder(grass, [moo], penalty, **p.places, **options)


def erase(p: Parts, **options: Any) -> EraseConfounder:
    moo, grass = p.variables
    options = {"start_rows": 32, "every_n_steps": 2, **options}
    return EraseConfounder(grass, p.layer, [moo], **options)


def discover(p: Parts, **options: Any) -> DiscoverFeatures:
    return DiscoverFeatures(p.layer, p.variables, features=4, show=2, **p.places, **options)


WATCHERS: dict[str, Callable[[Parts], list[Callback]]] = {
    "monitor": lambda p: [monitor(p)],
    "all measures": lambda p: [monitor(p, measures=ALL)],
    "training window": lambda p: [monitor(p, data="train", weights="natural")],
    "by steps": lambda p: [monitor(p, data="train", every_n_train_steps=2, weights="natural", max_samples=32)],
    "own data": lambda p: [monitor(p, data=p.own(), measures=("contribution", "decodability"))],
    "discovery": lambda p: [discover(p)],
    "contribution": lambda p: [suppress(p, ContributionPenalty(32))],
    "gradient": lambda p: [suppress(p, GradientPenalty())],
    "invariance": lambda p: [suppress(p, InvariancePenalty())],
    "independence": lambda p: [suppress(p, IndependencePenalty("hsic"))],
    "sum": lambda p: [suppress(p, Sum([ContributionPenalty(32), IndependencePenalty()]))],
    "group DRO": lambda p: [suppress(p, GroupDRO(0.1))],
    "reweighting": lambda p: [suppress(p, BalancedReweighting())],
    "budget": lambda p: [monitor(p), suppress(p, None, budget=0.05)],
    "budget alone": lambda p: [suppress(p, None, budget=0.05, budget_on="ratio")],
    "erasure": lambda p: [erase(p)],
    "erasure, val": lambda p: [erase(p, data="val")],
}
MEASURING = ("monitor", "all measures", "training window", "by steps", "own data", "discovery")
PENALTIES = (
    "contribution",
    "gradient",
    "invariance",
    "independence",
    "sum",
    "group DRO",
    "reweighting",
    "budget",
    "budget alone",
)
ERASURES = ("erasure", "erasure, val")
OF_TRAINING = ("training window", "by steps", *PENALTIES, "erasure")


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        name: of the fault.
        watchers: names of those that it is injected into.
        parts: what the callbacks are given; made anew for every run, from the folder of the test.
        net: what is trained; with its own faults, if those are what is tested.
        callbacks: of the user's, beside ours.
        says: what the one warning must match; None: nothing is said.
        options: of the Trainer.
        only_ours: the exception that comes from a pass of our own, which the run without callbacks does not have.
        logger: makes the logger, from a folder; None: there is none.
        check: of callbacks, model and folder, when all is done.
        lasting: whether the fault is still there in the last epoch.
    """

    name: str
    watchers: Sequence[str]
    parts: Callable[[], Parts] = Parts
    net: Callable[[], Net] = Net
    callbacks: Callable[[], list[Callback]] = list
    says: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    only_ours: type[BaseException] | None = None
    logger: Callable[[Path], Any] | None = None
    check: Callable[[list[Callback], Net, Path], None] | None = None
    lasting: bool = False


@dataclass
class Outcome:
    """What a run left behind."""

    problem: BaseException | None
    weights: Any
    random: Any
    modes: list[bool]
    said: list[str]
    other: list[str]
    model: Net
    callbacks: list[Callback]
    last: list[int]


class Last(Callback):
    """Counts what the watchers did in the last epoch: events, steps with a penalty, batches that were learned from."""

    def __init__(self, ours: list[Callback]) -> None:
        self.ours = ours
        self.before: list[int] = []

    def count(self) -> list[int]:
        found = []
        for c in self.ours:
            if isinstance(c, SuppressConfounder):
                found.append(c.suppression.acted)
            elif isinstance(c, EraseConfounder):
                found.append(c.erasure._steps - c.erasure.skipped)
            else:
                found.append(len(c.history))
        return found

    def on_train_epoch_start(self, trainer: Trainer, model: LightningModule) -> None:
        if trainer.current_epoch == EPOCHS - 1:
            self.before = self.count()

    @property
    def done(self) -> list[int]:
        return [now - before for now, before in zip(self.count(), self.before, strict=False)]


def run(fault: Fault, watcher: str | None, folder: Path) -> Outcome:
    """Train with the watcher, or with none."""
    Now.epoch, Now.step = -1, False
    seed_everything(0, verbose=False)
    model = fault.net()
    parts = fault.parts()
    parts.folder = folder
    ours = [] if watcher is None else WATCHERS[watcher](parts)
    settings = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **fault.options,
    }
    problem: BaseException | None = None
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = False if fault.logger is None else fault.logger(folder)
        last = Last(ours)
        trainer = Trainer(callbacks=[*fault.callbacks(), *ours, last], logger=logger, **settings)
        try:
            trainer.fit(model)
        except BaseException as found:
            problem = found
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning leaves Ctrl-C switched off
    return Outcome(
        problem,
        bits(model.state_dict()),
        streams(),
        [m.training for m in model.modules()],
        [str(w.message) for w in caught if issubclass(w.category, InterpWarning)],
        sorted({f"{w.category.__name__}: {w.message}" for w in caught if not issubclass(w.category, InterpWarning)}),
        model,
        ours,
        last.done,
    )


def check_no_trace(model: nn.Module) -> None:
    """Nothing of ours is left on a model, or in the process."""
    assert hooks(model) == 0
    for m in model.modules():
        assert not {"forward", "training_step", "manual_backward", "log", "log_dict"} & set(vars(m)), type(m)
        for kind in ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"):
            assert not getattr(m, kind, None)
    assert all(not p._backward_hooks for p in model.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0


# --- faults -----------------------------------------------------------------------------------------------------------


def raising(problem: Callable[[], BaseException], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises in epoch 1."""

    def call(*args: Any, **options: Any) -> Any:
        if struck():
            raise problem()
        return function(*args, **options)

    return call


def giving(found: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives something else in epoch 1."""
    return lambda *args: found(*args) if struck() else function(*args)


class FullDisk(Memory):
    """A logger that takes what the user logs, and nothing of ours in epoch 1."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if struck() and any("/" in name for name in metrics):
            raise full()
        super().log_metrics(metrics, step)


class FullWriter(TensorBoardLogger):
    """A TensorBoardLogger whose writer fails in one method, in epoch 1.

    Args:
        folder: where it writes.
        method: of the `SummaryWriter`.
        problem: what it raises.
    """

    def __init__(self, folder: Path, method: str, problem: Callable[[], Exception] = full) -> None:
        super().__init__(folder)
        self.method, self.problem = method, problem

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        if self.method not in vars(writer):
            setattr(writer, self.method, raising(self.problem, getattr(writer, self.method)))
        return writer


def key(name: str) -> Callable[[Any], Any]:
    return lambda batch: batch[name]


def called(model: Any, batch: Any) -> Any:
    return model(batch["x"])


def draw() -> float:
    """A number from each of the run's generators."""
    return float(torch.rand(())) + random.random() + float(np.random.rand())
