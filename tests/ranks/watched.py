"""Every bit of a run on several processes, with and without a monitor that measures everything."""

from __future__ import annotations

from callbacks import boring
from callbacks.boring import ALL, Boring
from callbacks.test_monitor import everything, probe
from torch import nn

from ranks.strategies import Sharded, strategy_of


class Spare(Boring):
    """A layer that no step runs: DDP must look for it."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.spare = nn.Linear(8, 8)


class BoringSharded(Sharded, Boring):
    """Each process holds a part of every weight."""


# Each: what the monitor is told, and how the run differs from the plain one.
WATCHED = {
    "val": ({"data": "val"}, {}),
    "train": ({"data": "train"}, {}),
    "loader": ({"data": "loader"}, {}),
    "accumulated": ({"data": "val"}, {"accumulate_grad_batches": 2}),
    "accumulated, by steps": ({"data": "loader", "every_n_train_steps": 2}, {"accumulate_grad_batches": 2}),
    "unused parameters": ({"data": "val"}, {"net": Spare, "find_unused_parameters": True}),
    "buffers of each its own": ({"data": "loader"}, {"broadcast_buffers": False}),
    "bf16-mixed": ({"data": "val"}, {"precision": "bf16-mixed"}),
    "sharded": ({"data": "val"}, {"net": BoringSharded, "sharded": True}),
    "sharded, train": ({"data": "train"}, {"net": BoringSharded, "sharded": True}),
    "sharded, loader": ({"data": "loader"}, {"net": BoringSharded, "sharded": True}),
}
OF_THE_STRATEGY = ("sharded", "find_unused_parameters", "broadcast_buffers")
_known: dict[str, dict] = {}  # runs that nobody watches


def bits_of(watched: bool, told: dict, options: dict, devices: int) -> dict:
    """`everything` of one run."""
    options = dict(options)
    strategy = strategy_of(devices, **{key: options.pop(key) for key in OF_THE_STRATEGY if key in options})
    watcher = boring.monitor(**{**told, "data": probe(told["data"])}, measures=ALL, prefix="watch") if watched else None
    found = everything(watcher, devices=devices, strategy=strategy, **options)
    assert watcher is None or len(watcher.history) >= 2
    return found


def watched(name: str, devices: int) -> dict:
    """What differs, and what the run is."""
    told, options = WATCHED[name]
    key = repr(sorted((k, str(v)) for k, v in options.items()))
    if key not in _known:
        _known[key] = bits_of(False, told, options, devices)
    seen = bits_of(True, told, options, devices)
    return {"differ": [part for part in seen if seen[part] != _known[key][part]], "streams": repr(seen["streams"][0])}
