"""What does watching cost? CPU time of an epoch with the monitor over that without, beside without over without.

    python benchmarks/cost.py                                  # all networks and sources, about an hour on one core
    python benchmarks/cost.py --scene demo mlp --source val    # some
    python benchmarks/cost.py --quick                          # 3 pairs of each, kept in a file of its own
    python benchmarks/cost.py --scene demo --profile           # where the monitor's time goes

The networks are those of `scenes.py`: the demo (2 variables), ResNet-18 at 64 px, a transformer of six layers and an MLP (10
variables each), all watched at four layers with the default measures. "val" watches the validation loop, "train" the training
loop, "loader" makes a pass of its own over the validation data. All write to TensorBoard.

A run is a few epochs of training and validation, a TensorBoardLogger in all arms. The first epoch is not counted: it imports
matplotlib and writes the layout. A pair is with, without, and a second without, in an order that turns, so that a machine that
warms up or slows down does not favour an arm; a ratio is within one pair. CPU time of this process, one thread.

"event" is another row: an event on a loader of its own, without any Trainer, over a bare forward pass of the same samples, and
again with sensitivity, which needs gradients. One JSON line per row in results/cost.jsonl; what is there is not run again.
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
from collections.abc import Callable
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from scenes import SCENES, Scene
from torch import nn

from lightning_interp import ConceptMonitor, Monitor
from lightning_interp.monitor import DEFAULT_MEASURES

RESULTS = Path(__file__).parent / "results" / "cost.jsonl"
PAIRS, EPOCHS, VERSION = 15, 2, 2
ARMS = ("with", "without", "again")
SOURCES = ("val", "train", "loader", "event")
NAMES = {"val": "validation loop", "train": "training loop", "loader": "own loader", "event": "an event, over a bare pass"}
HEAD = (
    "| network | monitor on | s without | with / without (quartiles) | without / without | with sensitivity | hooks left |\n"
    "|---|---|---|---|---|---|---|"
)


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


def run(scene: Scene, source: str, arm: str, epochs: int, extra: tuple[Callback, ...] = ()) -> tuple[float, list[float]]:
    """Train once; CPU seconds per counted epoch, and seconds of the events."""
    seed_everything(0, verbose=False)
    clock, monitor = Clock(), None
    callbacks: list[Callback] = [*extra]
    if arm == "with":
        monitor = ConceptMonitor(
            scene.variables,
            scene.layers,
            scene.output,
            scene.target,
            scene.inputs,
            data=scene.val if source == "loader" else source,
            summary=False,
        )
        callbacks.append(monitor)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[*callbacks, clock],
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=5,
        )
        trainer.fit(scene.model(), scene.train, scene.val)
    events = [] if monitor is None else [e.cost_seconds for e in monitor.history[1:]]
    return (clock.marks[-1] - clock.marks[0]) / (epochs - 1), events


def epochs_of(scene: Scene, source: str, pairs: int, epochs: int) -> dict:
    """Alternate the arms; the ratios of each pair."""
    seconds, events = {arm: [] for arm in ARMS}, []
    counter = HookCount()
    run(scene, source, "with", epochs, (counter,))  # warms up, and counts hooks where no time is taken
    for i in range(pairs):
        for arm in ARMS[i % 3 :] + ARMS[: i % 3]:
            cost, found = run(scene, source, arm, epochs)
            seconds[arm].append(cost)
            events += found
    return {
        "seconds_without": statistics.median(seconds["without"] + seconds["again"]),
        "event_seconds": statistics.median(events),
        "ratio": summary([a / b for a, b in zip(seconds["with"], seconds["without"])]),
        "ratio_aa": summary([a / b for a, b in zip(seconds["again"], seconds["without"])]),
        "hooks_between_events": counter.most,
    }


def passes_of(scene: Scene, pairs: int) -> dict:
    """An event on a loader of its own over a bare forward pass, with the default measures and with sensitivity."""
    torch.manual_seed(0)
    net = scene.model().eval()

    def bare() -> None:
        with torch.no_grad():
            for batch in scene.val:
                net(batch[scene.inputs])

    def watched(*more: str) -> Callable[[], None]:
        places = scene.layers, scene.output, scene.target, scene.inputs
        monitor = Monitor(net, scene.variables, *places, measures=(*DEFAULT_MEASURES, *more))

        def event() -> None:
            for batch in scene.val:
                with monitor.watching(batch), torch.no_grad():
                    net(batch[scene.inputs])
            monitor.event(len(monitor.history))

        return event

    arms = {"bare": bare, "again": bare, "ratio": watched(), "ratio_sensitivity": watched("sensitivity")}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(1 + pairs):
        names = list(arms)[i % 4 :] + list(arms)[: i % 4]
        for name in names:
            start = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - start)
    kept = {name: spent[1:] for name, spent in seconds.items()}
    ratios = {name: summary([a / b for a, b in zip(spent, kept["bare"])]) for name, spent in kept.items() if name != "bare"}
    return {"seconds_without": statistics.median(kept["bare"]), **ratios, "ratio_aa": ratios["again"]}


def summary(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def profile(scene: Scene, source: str, epochs: int, top: int) -> None:
    """Print the functions in which a watched run spends more time than an unwatched one."""
    seen = {}
    run(scene, source, "with", 2)
    for arm in ("without", "with"):
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(run, scene, source, arm, epochs)
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


def report(rows: list[dict]) -> None:
    """The table of the last measurement of every row."""
    print(HEAD)
    for name in SCENES:
        for source in SOURCES:
            found = [r for r in rows if (r.get("version"), r.get("scene"), r.get("source")) == (VERSION, name, source)]
            if found:
                print(line(found[-1]))


def line(row: dict) -> str:
    """A row of the table."""
    parts = [row["scene"], NAMES[row["source"]], f"{row['seconds_without']:.2f}"]
    for name in ("ratio", "ratio_aa", "ratio_sensitivity"):
        r = row.get(name)
        parts.append("–" if r is None else f"{r['median']:.3f} ({r['low']:.3f}–{r['high']:.3f})")
    return f"| {' | '.join([*parts, str(row.get('hooks_between_events', '–'))])} |"


def measure(names: list[str], sources: list[str], results: Path, pairs: int) -> None:
    """Measure what is not there yet."""
    lines = results.read_text().splitlines() if results.exists() else []
    known = [r for r in map(json.loads, lines) if r.get("version") == VERSION]
    print(HEAD)
    for name in names:
        scene = None
        for source in sources:
            key = {"version": VERSION, "scene": name, "source": source, "pairs": pairs}
            found = [r for r in known if key.items() <= r.items()]
            if not found:
                scene = scene or SCENES[name]()
                taken = passes_of(scene, pairs) if source == "event" else epochs_of(scene, source, pairs, EPOCHS)
                found = [{**key, **taken, "torch": torch.__version__, "lightning": lightning.__version__}]
                with results.open("a") as file:
                    file.write(json.dumps(found[0]) + "\n")
            print(line(found[-1]), flush=True)


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--quick", action="store_true", help="3 pairs of each, kept in a file of its own")
    parser.add_argument("--profile", action="store_true", help="show where the time goes; no result is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.profile:
        profile(SCENES[arguments.scene[0]](), arguments.source[0], 3, top=60)
        return
    results = RESULTS.with_name("cost_quick.jsonl") if arguments.quick else RESULTS
    results.parent.mkdir(exist_ok=True)
    measure(arguments.scene, arguments.source, results, 3 if arguments.quick else PAIRS)


if __name__ == "__main__":
    main()
