"""What does watching cost? CPU time of an epoch of the demo with the monitor over that without, beside without over without.

Prints the median ratio, its quartiles and the hooks that are on the model between events, and appends one line to
benchmarks/results/cost.jsonl.

    python benchmarks/cost.py                # about 4 minutes on one core
    python benchmarks/cost.py --quick        # 3 pairs
    python benchmarks/cost.py --profile      # where the monitor's time goes

A run is a few epochs of the demo's net on the demo's data: training, validation, a TensorBoardLogger in all arms. The first
epoch is not counted: it imports matplotlib and writes the layout. A pair is with, without, and a second without, in an order
that turns, so that a machine that warms up or slows down does not favour an arm; a ratio is within one pair. CPU time of this
process, one thread. Goal: median of with/without at most 1.05, and no hook between events.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import pstats
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_interp import Concept, ConceptMonitor, Confounder
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel

RESULTS = Path(__file__).parent / "results" / "cost.jsonl"
PAIRS, EPOCHS, GOAL = 15, 3, 1.05
ARMS = ("with", "without", "again")


class Clock(Callback):
    """CPU seconds of every epoch, from the end of the one before: training, validation, events and loggers."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time; the first mark ends the epoch that is not counted."""
        self.marks.append(time.process_time())


class HookCount(Callback):
    """The most hooks found on the model outside a validation run, where an event is being prepared."""

    def __init__(self) -> None:
        self.most = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Count while a training batch goes by."""
        self.most = max(self.most, hooks(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count after the event."""
        self.most = max(self.most, hooks(pl_module))


def hooks(model: nn.Module) -> int:
    """Forward and backward hooks on a model and its submodules."""
    return sum(
        len(held)
        for m in model.modules()
        for held in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    )


class Data(GrassyDigitsData):
    """The demo's data, drawn once for all runs."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[str, DataLoader] = {}

    def train_dataloader(self) -> DataLoader:
        """The training loader."""
        return self._drawn.setdefault("train", super().train_dataloader())

    def val_dataloader(self) -> DataLoader:
        """The validation loader."""
        return self._drawn.setdefault("val", super().val_dataloader())


def run(data: Data, arm: str, epochs: int, extra: tuple[Callback, ...] = ()) -> tuple[float, ConceptMonitor | None]:
    """Train once; CPU seconds per counted epoch, and the monitor."""
    seed_everything(0, verbose=False)
    clock, monitor = Clock(), None
    callbacks: list[Callback] = [clock, *extra]
    if arm == "with":
        monitor = ConceptMonitor(
            [Concept("digit"), Confounder("grass")],
            layers=["encoder.conv*"],
            output="head",
            target="label",
            inputs="image",
            summary=False,
        )
        callbacks.insert(0, monitor)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=5,
        )
        trainer.fit(GrassyDigitsModel(), datamodule=data)
    return (clock.marks[-1] - clock.marks[0]) / (epochs - 1), monitor


def measure(pairs: int, epochs: int) -> dict:
    """Alternate the arms; the ratios of each pair."""
    data, seconds, events = Data(), {arm: [] for arm in ARMS}, []
    counter = HookCount()
    run(data, "with", epochs, (counter,))  # warms up, and counts hooks where no time is taken
    for i in range(pairs):
        for arm in ARMS[i % 3 :] + ARMS[: i % 3]:
            cost, monitor = run(data, arm, epochs)
            seconds[arm].append(cost)
            if monitor is not None:
                events += [e.cost_seconds for e in monitor.history[1:]]
    return {
        "pairs": pairs,
        "epochs_counted": epochs - 1,
        "seconds_without": statistics.median(seconds["without"] + seconds["again"]),
        "seconds_with": statistics.median(seconds["with"]),
        "event_seconds": statistics.median(events),
        "ratio": summary([a / b for a, b in zip(seconds["with"], seconds["without"])]),
        "ratio_aa": summary([a / b for a, b in zip(seconds["again"], seconds["without"])]),
        "hooks_between_events": counter.most,
    }


def summary(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def profile(epochs: int, top: int) -> None:
    """Print the functions in which a watched run spends more time than an unwatched one."""
    data, seen = Data(), {}
    run(data, "with", 2)
    for arm in ("without", "with"):
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(run, data, arm, epochs)
        stats = pstats.Stats(profiler)
        seen[arm] = {key: (calls, own, whole) for key, (_, calls, own, whole, _) in stats.stats.items()}
    none = (0, 0.0, 0.0)
    keys = {k for arm in seen.values() for k in arm}
    for column, title in ((2, "inclusive"), (1, "own")):
        print(f"\nms per epoch, with minus without, {title} time ({epochs} epochs, the first counted here)")
        gain = {k: [(seen["with"].get(k, none)[c] - seen["without"].get(k, none)[c]) / epochs for c in (0, 1, 2)] for k in keys}
        for key in sorted(keys, key=lambda k: -gain[k][column])[:top]:
            calls, *times = gain[key]
            file = "/".join(Path(key[0]).parts[-2:])
            print(f"{1e3 * times[column - 1]:9.2f} {calls:9.1f} calls  {file}:{key[1]} {key[2]}")


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 pairs")
    parser.add_argument("--profile", action="store_true", help="show where the time goes; no result is written")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if arguments.profile:
        profile(arguments.epochs, top=60)
        return
    result = measure(3 if arguments.quick else arguments.pairs, arguments.epochs)
    RESULTS.parent.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "lightning": lightning.__version__}
    with RESULTS.open("a") as file:
        file.write(json.dumps({**result, **versions}) + "\n")
    for name, title in (("ratio", "with / without"), ("ratio_aa", "without / without")):
        r = result[name]
        print(f"{title:18} {r['median']:.3f}  (quartiles {r['low']:.3f} … {r['high']:.3f})")
    without, watched, event = (1e3 * result[k] for k in ("seconds_without", "seconds_with", "event_seconds"))
    print(f"epoch {without:.0f} ms without, {watched:.0f} ms with; an event takes {event:.1f} ms")
    print(f"hooks on the model between events: {result['hooks_between_events']}")
    print(f"goal (ratio at most {GOAL}): {'yes' if result['ratio']['median'] <= GOAL else 'NO'}")


if __name__ == "__main__":
    main()
