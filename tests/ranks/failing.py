"""Something of the user's fails, on the second process only: all go on alike, or end alike."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from callbacks import boring
from callbacks.boring import ALL, Animals, Call, bits
from lightning.pytorch import seed_everything

from lightning_interp import Concept, Confounder, DiscoverFeatures
from lightning_interp.activations.quiet import own_passes
from lightning_interp.errors import InterpWarning
from ranks.measured import BATCH, Exact, ExactSharded, N
from ranks.strategies import strategy_of


class Now:
    """When it fails."""

    first, epoch = 1, -1


def struck() -> bool:
    return dist.get_rank() == 1 and Now.epoch >= Now.first


def fail(what: str):
    """What a user's function may do at any time."""
    if struck():
        raise RuntimeError(f"{what} is broken")


class Failing(Exact):
    """As if memory ran out in a pass of the library's own."""

    def forward(self, x):
        if own_passes() and not self.training:
            fail("a pass")
        return super().forward(x)


class FailingSharded(ExactSharded, Failing):
    """The others are gathering weights meanwhile."""


class Broken(Animals):
    """A file that cannot be read."""

    def __getitem__(self, i):
        fail("the disk")
        return super().__getitem__(i)


def inputs_of(model, batch):
    if own_passes():
        fail("inputs")
    return model(batch["x"])


def target_of(batch):
    if own_passes():
        fail("target")
    return batch["moo"]


def decode(sample):
    fail("decode")
    return "a sample"


def labels_of(batch):
    fail("a label")
    return batch["grass"]


def own(kind=Animals, n=N):
    return boring.loader(kind(n, 3, dtype=torch.float64), batch=BATCH)


# Each: what the monitor is told, the net, and in which epoch it begins to fail.
FAILING = {
    "own data": ({"data": lambda: own(Broken)}, Exact, 1),
    "own data, at once": ({"data": lambda: own(Broken)}, Exact, 0),
    "inputs": ({"inputs": inputs_of, "sample_id": "id", "measures": ALL}, Exact, 1),
    "inputs, at once": ({"inputs": inputs_of, "sample_id": "id", "measures": ALL}, Exact, 0),
    "target": ({"target": target_of, "measures": ALL}, Exact, 1),
    "pass": ({"data": own, "measures": ALL}, Failing, 1),
    "pass, sharded": ({"data": own, "measures": ALL}, FailingSharded, 1),
    "labels": ({"variables": [Concept("moo"), Confounder("grass", label=labels_of)]}, Exact, 1),
    "labels of own data": ({"variables": [Concept("moo"), Confounder("grass", label=labels_of)], "data": own}, Exact, 1),
    "decode": ({"discover": True}, Exact, 1),
}


def failing(name: str, devices: int) -> dict:
    """What came of it on this process."""
    told, net, Now.first = FAILING[name]
    told, Now.epoch = dict(told), -1
    if "data" in told:
        told["data"] = told["data"]()
    validation = own()
    if told.pop("discover", False):
        validation = own(n=3 * N)
        places = {"output": "head", "target": "moo", "inputs": "x", "decode": decode}
        watcher = DiscoverFeatures("encoder.1", [Concept("moo")], **places)
    else:
        watcher = boring.monitor(told.pop("variables", None), **{"layers": ["encoder.1"], **told})
    seed_everything(0, verbose=False)
    begin = Call(on_train_epoch_start=lambda run, model: setattr(Now, "epoch", run.current_epoch))
    run = boring.trainer(begin, watcher, max_epochs=3, devices=devices, strategy=strategy_of(devices, net is FailingSharded))
    model, problem = net(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run.fit(model, own(), validation)
        except Exception as found:
            problem = f"{type(found).__name__}: {found}"
    return {
        "problem": problem,
        "epochs": [e.epoch for e in watcher.history],
        "events": bits([boring.plain(e) for e in watcher.history]),
        "said": [str(w.message) for w in caught if w.category is InterpWarning],
        "keys": sorted(run.callback_metrics),
        "hooks": boring.hooks(model) if net is not FailingSharded else 0,  # FSDP has its own
    }
