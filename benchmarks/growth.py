"""Does a run grow with the number of events? Resident memory, live tensors, hooks and the size of the state, event after event.

    python benchmarks/growth.py                          # all callbacks, 2,000 events each: a few minutes on one core
    python benchmarks/growth.py --events 300 --only monitor

A small net is trained; after every step there is an event (of a penalty or an erasure: a step). `max_events` is a tenth of the
events, so that the history has been thinned several times when the second half begins, of which the slope is taken: least
squares of resident memory on events, with a 95 % interval from blocks of a twentieth. What a callback keeps must not grow, so
the slope's interval should hold 0, or the slope be smaller than an event.

Prints one JSON line per callback, and appends it to results/growth.jsonl.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_interp import Concept, ConceptMonitor, Confounder, DiscoverFeatures, EraseConfounder, SuppressConfounder

RESULTS = Path(__file__).parent / "results" / "growth.jsonl"
PAGE = 4096  # bytes
BLOCKS = 20


class Items(Dataset):
    def __init__(self, n: int) -> None:
        i = torch.arange(n)
        self.moo, self.grass = i % 2, torch.where(i // 2 % 8 < 3, 1 - i % 2, i % 2)
        self.x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
        self.x[:, 0] += 2 * self.moo - 1
        self.x[:, 1] += 2 * self.grass - 1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "moo": self.moo[i], "grass": self.grass[i]}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["x"]), batch["moo"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Samples(Callback):
    """After every step: resident memory; at some of them: live tensors and the size of the state."""

    def __init__(self, watcher: Callback, every: int) -> None:
        self.watcher, self.every = watcher, every
        self.resident: list[int] = []
        self.tensors: list[int] = []
        self.state: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, model: LightningModule, *args: object) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.tensors.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
            self.state.append(len(json.dumps(self.watcher.state_dict(), default=str)))
        self.resident.append(resident())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def watchers(events: int) -> dict[str, Callback]:
    moo, grass = Concept("moo"), Confounder("grass")
    most = max(4, events // 10)
    places = {"output": "head", "target": "moo", "inputs": "x"}
    often = {"data": DataLoader(Items(160), 160), "every_n_train_steps": 1, "max_events": most}
    measures = ("contribution", "decodability", "groups", "entanglement")
    return {
        "monitor": ConceptMonitor(
            [moo, grass], ["encoder"], warn_above=1e9, summary=False, measures=measures, **places, **often
        ),
        "discovery": DiscoverFeatures("encoder", [moo], features=3, show=2, **places, **often),
        "penalty": SuppressConfounder(grass, [moo], start_epoch=0, ramp_epochs=0, **places),
        "erasure": EraseConfounder(grass, "encoder", [moo], every_n_steps=1, start_rows=32),
    }


def slope(samples: list[int]) -> tuple[float, float, float]:
    """Bytes per event, and a 95 % interval from the slopes between blocks."""
    block = max(1, len(samples) // BLOCKS)
    means = [statistics.mean(samples[i : i + block]) for i in range(0, block * (len(samples) // block), block)]
    steps = [(b - a) / block for a, b in itertools.pairwise(means)]
    middle = (means[-1] - means[0]) / (block * (len(means) - 1))
    error = 2.1 * statistics.stdev(steps) / len(steps) ** 0.5
    return middle, middle - error, middle + error


def measure(name: str, events: int) -> dict[str, object]:
    """Train with one callback, an event after every step."""
    seed_everything(0, verbose=False)
    watcher, model = watchers(events)[name], Net()
    samples = Samples(watcher, max(1, events // 4))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=events,
        max_epochs=-1,
        callbacks=[watcher, samples],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, DataLoader(Items(32 * events), 32))  # one epoch: its ends are not what is measured
    half = samples.resident[len(samples.resident) // 2 :]
    found, low, high = slope(half)
    return {
        "callback": name,
        "events": events,
        "bytes_per_event": round(found, 1),
        "low": round(low, 1),
        "high": round(high, 1),
        "tensors": [samples.tensors[len(samples.tensors) // 2], samples.tensors[-1]],
        "state_bytes": [samples.state[len(samples.state) // 2], samples.state[-1]],
        "kept": len(getattr(watcher, "history", ())),
        "first_and_last": [e.step for e in (*getattr(watcher, "history", ())[:1], *getattr(watcher, "history", ())[-1:])],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "mib": round(resident() / 2**20, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--only", choices=list(watchers(100)), help="one callback")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RESULTS.parent.mkdir(exist_ok=True)
    for name in [chosen.only] if chosen.only else list(watchers(100)):
        line = json.dumps(measure(name, chosen.events))
        print(line)
        sys.stdout.flush()
        with RESULTS.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
