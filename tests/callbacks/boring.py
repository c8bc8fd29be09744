"""A small LightningModule that notices everything a callback can do to a run, and data for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_interp import Concept, ConceptMonitor, Confounder

LAYERS = ["encoder.0", "encoder.2"]
# What Lightning says of a small run that is stopped and resumed: of the host, and not what is tested.
HOST_WARNINGS = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),  # few workers, eval mode, …
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # not every callback is given again
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.13
]
ALL = ("contribution", "decodability", "groups", "sensitivity", "mediation", "intervention", "entanglement")
BATCH = 16
TRAIN, VAL = 192, 160  # 12 and 10 batches


class Animals(Dataset):
    """Items {"x", "moo", "grass", "id", "place"}; grass agrees with moo five times in eight.

    Args:
        n: items.
        seed: of their noise.
        augment: add noise from the three generators that augmentations use.
        dtype: of x.
    """

    def __init__(self, n: int, seed: int = 0, augment: bool = False, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.augment = augment
        self.id = torch.arange(n)
        self.moo = torch.arange(n) % 2
        self.grass = torch.where(torch.arange(n) // 2 % 8 < 3, 1 - self.moo, self.moo)
        self.x = torch.randn(n, 6, generator=generator).to(dtype)
        self.x[:, 0] += 2 * self.moo - 1
        self.x[:, 1] = 2 * self.grass - 1
        self.place = [("meadow", "stable", "sea")[i % 3 if i % 2 else 0] for i in range(n)]

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, i: int) -> dict[str, Any]:
        x = self.x[i]
        if self.augment:
            x = x + 0.1 * (torch.randn(6) + float(np.random.randn()) + random.random())
        return {"x": x, "moo": self.moo[i], "grass": self.grass[i], "id": self.id[i], "place": self.place[i]}


class Stream(IterableDataset):
    """The same items with no length."""

    def __init__(self, items: Animals) -> None:
        self.items = items

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.items[i] for i in range(len(self.items)))


def swap_grass(batch: dict[str, Any]) -> dict[str, Any]:
    """do(grass): the second column of x, and the label with it."""
    x = batch["x"].clone()
    x[:, 1] = -x[:, 1]
    return {**batch, "x": x, "grass": 1 - batch["grass"]}


def first_column(a: Tensor) -> Tensor:
    return a[:, :1]


def grass_of(batch: dict[str, Any]) -> Tensor:
    return batch["grass"]


def with_stripes() -> dict[str, Any]:
    """Examples whose last column is larger."""
    x = Animals(40, 5).x
    x[:, 5] += 1
    return {"x": x}


def without_stripes() -> Dataset:
    """Examples like them, drawn with what the run's own generators would give."""
    return Animals(50, 6, augment=True)


class Boring(LightningModule):
    """Dropout, batch norm, a frozen one, buffers written in forward, metrics, and `self.log` in forward.

    Args:
        dropout: probability.
        lr: of Adam.
        compiled: compile the encoder with this backend.
        direct: whether the steps call `self(x)`; else they call the parts.
    """

    def __init__(self, dropout: float = 0.2, lr: float = 0.01, compiled: str | None = None, direct: bool = True) -> None:
        super().__init__()
        encoder = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(8, 8), nn.Tanh()
        )
        self.encoder: nn.Module = torch.compile(encoder, backend=compiled) if compiled else encoder
        self.frozen = nn.BatchNorm1d(8).requires_grad_(False).eval()
        self.head = nn.Linear(8, 2)
        self.accuracy = MulticlassAccuracy(2)
        self.seen = MeanMetric()
        self.lr, self.direct = lr, direct
        self.register_buffer("ema", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.hooks_in_step: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(self.encoder(x))
        with torch.no_grad():  # in evaluation mode as well
            self.ema.mul_(0.9).add_(0.1 * h.float().mean(0))
            self.calls = self.calls + 1
            self.seen.update(h.float().mean())
        self.log("forward_mean", h.float().mean(), on_step=False, on_epoch=True, batch_size=len(x))
        return self.head(h)

    def logits(self, x: Tensor) -> Tensor:
        return self(x) if self.direct else self.head(self.frozen(self.encoder(x)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.hooks_in_step.append(hooks(self))
        loss = functional.cross_entropy(self.logits(batch["x"]), batch["moo"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["x"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self.logits(batch["x"])
        self.accuracy.update(logits, batch["moo"])
        self.log("val_loss", functional.cross_entropy(logits, batch["moo"]), batch_size=len(batch["x"]))

    def on_validation_epoch_end(self) -> None:
        self.log("accuracy", self.accuracy)
        self.log("seen", self.seen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class BoringData(LightningDataModule):
    """Loaders for `Boring`.

    Args:
        shuffle: whether training is in random order and augmented.
        workers: processes per loader.
    """

    def __init__(self, shuffle: bool = True, workers: int = 0) -> None:
        super().__init__()
        self.shuffle, self.workers = shuffle, workers

    def train_dataloader(self) -> DataLoader:
        return loader(Animals(TRAIN, 1, self.shuffle), self.shuffle, self.workers)

    def val_dataloader(self) -> DataLoader:
        return loader(Animals(VAL, 2), workers=self.workers)


def loader(items: Dataset, shuffle: bool = False, workers: int = 0, batch: int = BATCH) -> DataLoader:
    return DataLoader(items, batch_size=batch, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0)


def probe_loader(n: int = VAL, batch: int = BATCH) -> DataLoader:
    return loader(Animals(n, 2), batch=batch)


def probe_batch(n: int = VAL, seed: int = 2) -> dict[str, Any]:
    items = Animals(n, seed)
    return default_collate([items[i] for i in range(n)])


class Memory(Logger):
    """Keeps what is logged: [(step, {key: value})]."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    name, version = "memory", 0

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))


class Call(Callback):
    """Calls a function in one hook: `Call(on_train_epoch_end=f)`, f(trainer, model)."""

    def __init__(self, **functions: Any) -> None:
        for name, function in functions.items():
            setattr(self, name, lambda trainer, model, *args, f=function: f(trainer, model))


def monitor(variables: Any = None, **options: Any) -> ConceptMonitor:
    """A ConceptMonitor of `Boring`; gives no alarm unless told to."""
    found = [Concept("moo"), Confounder("grass", intervention=swap_grass)] if variables is None else variables
    options = {"layers": LAYERS, "output": "head", "target": "moo", "inputs": "x", "warn_above": float("inf"), **options}
    return ConceptMonitor(found, **options)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    options = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **options,
    }
    return Trainer(callbacks=list(callbacks), **options)


def fit(
    *callbacks: Callback, model: Any = None, data: Any = None, ckpt_path: str | None = None, **options: Any
) -> tuple[Trainer, Boring]:
    """Train from seed 0, which also draws the weights of a `model` that is given as a function."""
    seed_everything(0, verbose=False)
    if model is None or not isinstance(model, LightningModule):
        model = Boring() if model is None else model()
    run = trainer(*callbacks, **options)
    run.fit(model, datamodule=BoringData() if data is None else data, ckpt_path=ckpt_path)
    return run, model


def hooks(model: nn.Module) -> int:
    """Forward and backward hooks of every kind on a model and its submodules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


def bits(found: Any) -> Any:
    """Tensors as bytes, in dicts and lists, so that `==` compares bits."""
    if isinstance(found, DTensor):
        found = found.to_local()
    if isinstance(found, Tensor):
        return found.dtype, tuple(found.shape), found.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(found, dict):
        return {k: bits(v) for k, v in found.items()}
    if isinstance(found, (list, tuple)):
        return [bits(v) for v in found]
    return found


def streams() -> list[Any]:
    """The states of the three random number generators."""
    state = np.random.get_state()
    return [bits(torch.get_rng_state()), state[1].tobytes(), state[2:], random.getstate()]


def plain(event: Any, *without: str) -> dict[str, Any]:
    """An event as a dict, without what depends on the clock, and without the fields named."""
    found = event.to_dict()
    for name in ("cost_seconds", *without):
        del found[name]
    return found


def described(found: Any) -> Any:
    """What an object of the library was built with, down to plain values: two that are built alike are described alike."""
    if isinstance(found, Tensor):
        return bits(found)
    if isinstance(found, (list, tuple)):
        return [described(v) for v in found]
    if isinstance(found, dict):
        return {k: described(v) for k, v in found.items()}
    if isinstance(found, partial):
        return described(found.keywords)
    if type(found).__module__.startswith("lightning_interp"):
        return type(found).__name__, described(vars(found))
    return found if isinstance(found, (str, int, float, bool, set, type(None))) else getattr(found, "__qualname__", type(found))


def without_drift(found: dict[str, Any]) -> dict[str, Any]:
    for scores in found["decodability"].values():
        for score in scores.values():
            score["drift"] = None
    return found


def trainer_yaml(epochs):
    """A quiet Trainer as YAML, up to its list of callbacks."""
    return f"""
trainer:
  max_epochs: {epochs}
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  callbacks:"""
