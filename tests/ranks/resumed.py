"""Runs on several processes that are stopped after two of four epochs, and go on."""

from __future__ import annotations

from pathlib import Path

import torch
from callbacks import boring
from callbacks.boring import ALL, Animals, Boring, BoringData, bits
from faults.test_resume import what
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_interp import Concept, Confounder, EraseConfounder, SuppressConfounder
from lightning_interp.penalties import ContributionPenalty, GradientPenalty, GroupDRO
from ranks.strategies import Sharded, strategy_of

GRASS, MOO = Confounder("grass", intervention=boring.swap_grass), Concept("moo")


class Still(Boring):
    """Without dropout: the generators are not in a checkpoint."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)


class StillSharded(Sharded, Still):
    """Each process holds a part of every weight; of statistics of its own, as batch norm has, a checkpoint has the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[1] = nn.Identity()


class Uneven(BoringData):
    """Seven batches on each process: what is due every five steps, or kept for a window, is cut by the end of the epoch."""

    def train_dataloader(self):
        return boring.loader(Animals(14 * boring.BATCH - 5, 1))


def suppress(penalty=None, **options):
    places = {"output": "head", "target": "moo", "inputs": "x", "start_epoch": 0, "ramp_epochs": 0}
    return SuppressConfounder(GRASS, [MOO], penalty, **places, **options)


WATCHERS = {
    "monitor": lambda: [boring.monitor(measures=ALL)],
    "training window": lambda: [boring.monitor(data="train", max_samples=40)],
    "contribution": lambda: [suppress(ContributionPenalty(64))],
    "gradient": lambda: [suppress(GradientPenalty(), layer="encoder.4")],
    "group DRO": lambda: [suppress(GroupDRO(0.1))],
    "budget": lambda: [boring.monitor(), suppress(budget=0.05)],
    "budget alone": lambda: [suppress(budget=0.05, budget_on="ratio")],
    "erasure": lambda: [EraseConfounder(GRASS, "encoder.2", [MOO], start_rows=32)],
    "erasure, val": lambda: [EraseConfounder(GRASS, "encoder.2", [MOO], start_rows=32, data="val")],
}
RESUMED = dict.fromkeys(WATCHERS, False) | {"sharded monitor": True, "sharded gradient": True, "sharded erasure": True}


def go(name: str, epochs: int, devices: int, folder: Path | None = None, path: str | None = None, **options):
    sharded = RESUMED[name]
    ours = WATCHERS[name.removeprefix("sharded ")]()
    saver = [] if folder is None else [ModelCheckpoint(folder, save_last=True)]
    _, model = boring.fit(
        *ours,
        *saver,
        model=StillSharded if sharded else Still,
        data=Uneven(shuffle=False),
        max_epochs=epochs,
        ckpt_path=path,
        enable_checkpointing=folder is not None,
        devices=devices,
        strategy=strategy_of(devices, sharded),
        **options,
    )
    shares = [p.to_local() if sharded else p for p in model.parameters()]
    found = dict(model.named_parameters()) if sharded else model.state_dict()
    return ours, bits(found), [p.detach().float() for p in shares]


def resumed(name: str, devices: int, folder: Path) -> dict:
    """Whether the resumed run has the weights of the one that never stopped, and whether it knows what that knows."""
    whole, weights, *tensors = go(name, 4, devices)
    go(name, 2, devices, folder / name)
    path = folder / name / "last.ckpt"
    torch.load(path, weights_only=True)
    ours, again, more = go(name, 4, devices, path=str(path))
    tensors.append(more)
    apart = max(float((one - other).abs().max()) for one, other in zip(tensors[0], tensors[1], strict=True) if one.numel())
    same = [what(c) for c in ours] == [what(c) for c in whole]
    return {"weights": again == weights, "known": same, "apart": apart}
