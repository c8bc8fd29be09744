"""The cores in a plain loop on several processes: torch's DDP, FSDP2, and gradients averaged by hand."""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.distributed as dist
from callbacks import boring
from callbacks.boring import ALL, Animals, bits, swap_grass
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.pytorch import seed_everything
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from lightning_interp import Concept, Confounder, Erasure, Monitor, Suppression, edit, explain
from lightning_interp.monitor import DEFAULT_MEASURES
from lightning_interp.penalties import ContributionPenalty, GradientPenalty, GroupDRO, IndependencePenalty, InvariancePenalty
from lightning_interp.processes import gathered, together, world

GRASS, MOO = Confounder("grass", intervention=swap_grass), Concept("moo")
WATCH = {"layers": ["encoder.1", "encoder.3"], "output": "head", "target": "moo", "inputs": "x", "warn_above": float("inf")}
EPOCHS, TRAIN, VAL, OWN = 2, 192, 101, 65  # of 101 one process has one more than the other; of 65 a batch more
SIZE = 16


class Net(nn.Module):
    """In float64; with dropout, what a watcher draws would show."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout)).double()
        self.head = nn.Linear(8, 2).double()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))  # DDP shares it out before every pass

    def forward(self, x):
        return self.head(self.encoder(x)) * self.scale


def made(kind, dropout=0.0):
    """The net as a loop of this kind has it."""
    seed_everything(0, verbose=False)
    net = Net(dropout)
    if kind == "fsdp":
        for part in (net.encoder, net.head, net):
            fully_shard(part)
    if kind == "fabric":
        return fabric().setup(net)
    return DistributedDataParallel(net) if kind == "ddp" else net


@cache
def fabric():
    made = Fabric(accelerator="cpu", devices=world()[1], strategy=DDPStrategy(process_group_backend="gloo"))
    made.launch()
    return made


def batches(n, seed, size):
    """This process's share of the samples, in a random order."""
    rank, processes = world()
    items = Animals(n, seed, dtype=torch.float64)
    mine = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()[rank::processes]
    for start in range(0, len(mine), size):
        yield default_collate([items[i] for i in mine[start : start + size]])


def weights(net):
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach() for p in net.parameters()]


def loop(net, lr=0.05, monitor=None, suppression=None, erasure=None, own=None, missing=None, average=False):
    """What a user writes; in step `missing` the second process has no label of the confounder."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)
    step = 0
    for epoch in range(EPOCHS):
        net.train()
        for batch in batches(TRAIN, 1, 2 * SIZE):
            if step == missing and world()[0] == 1:
                del batch["grass"]
            if suppression is not None:
                with suppression.watching(batch):
                    loss = F.cross_entropy(net(batch["x"]), batch["moo"])
                loss = loss + suppression.penalty(loss)
            elif erasure is not None:
                with erasure.watching(batch):
                    loss = F.cross_entropy(net(batch["x"]), batch["moo"])
            else:
                loss = F.cross_entropy(net(batch["x"]), batch["moo"])
            optimizer.zero_grad()
            loss.backward()
            for p in net.parameters() if average else ():
                dist.all_reduce(p.grad)
                p.grad /= world()[1]
            optimizer.step()
            step += 1
        net.eval()
        with torch.no_grad():
            for batch in batches(VAL, 2, SIZE):
                if monitor is None or own is not None:
                    net(batch["x"])
                    continue
                with monitor.watching(batch):
                    net(batch["x"])
        if monitor is not None:
            monitor.measured(step, epoch, own)
    return optimizer


def own_data():
    return boring.loader(Animals(OWN, 2, dtype=torch.float64), batch=SIZE)


def monitored(kind):
    """Events of a net that learns nothing, and whether one that learns has the same bits without the monitor."""
    events, differ = {}, []
    for where in ("loop", "own"):
        net = made(kind)
        monitor = Monitor(net, [MOO, GRASS], measures=ALL, **WATCH)
        loop(net, 0.0, monitor, own=own_data() if where == "own" else None)
        events[where] = [boring.plain(e) for e in monitor.history]
        ends = []
        for watched in (True, False):
            net = made(kind, dropout=0.2)
            seen = Monitor(net, [MOO, GRASS], measures=ALL, **WATCH) if watched else None
            optimizer = loop(net, monitor=seen, own=own_data() if where == "own" and watched else None)
            ends.append([bits(net.state_dict()), bits(optimizer.state_dict()), boring.streams()])
        differ += [where] * (ends[0] != ends[1])
    net = made(kind)  # no pass has been run
    first = explain(net, own_data(), [MOO, GRASS], WATCH["layers"], "head", "x", "moo", ALL)
    return {"events": events, "differ": differ, "explained": boring.plain(first)}


def refused():
    """What is said where the weights of a sharded model would be written to, or cannot be gathered."""
    net = made("fsdp")
    found = {"edit": outcome(lambda: edit(net, "encoder.2", GRASS, [default_collate([0])]))}
    one = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"))
    for measures in (DEFAULT_MEASURES, ALL):
        monitor = Monitor(one, [MOO, GRASS], measures=measures, **WATCH)
        for batch in batches(VAL, 2, SIZE):
            with torch.no_grad(), monitor.watching(batch):
                one(batch["x"])
        found[len(measures)] = outcome(lambda m=monitor: m.event(0).n)
    return found


PENALTIES = {
    "contribution": (partial(ContributionPenalty, 2 * SIZE), None),
    "invariance": (InvariancePenalty, None),
    "dro": (GroupDRO, None),
    "independence": (IndependencePenalty, "encoder.2"),
    "gradient": (GradientPenalty, "encoder.2"),
}


def suppressed(kind, penalty, missing=None):
    """The weights, and how often the penalty acted."""
    net = made(kind)
    term, layer = PENALTIES[penalty]
    s = Suppression(net, GRASS, [MOO], term(), output="head", inputs="x", target="moo", layer=layer)
    loop(net, suppression=s, missing=missing, average=kind == "hand")
    return {"weights": weights(net), "acted": s.acted, "skipped": s.skipped, "hooks": boring.hooks(net)}


def erased(kind):
    """The eraser, fitted once to the rows of all processes, of a net that learns nothing."""
    net = made(kind)
    steps = TRAIN // (2 * SIZE) // world()[1]
    erasure = Erasure(net, GRASS, "encoder.2", [MOO], start_rows=1, memory_rows=10**12, every_n_steps=steps)
    loop(net, 0.0, erasure=erasure)
    return {"eraser": [part.tolist() for part in erasure.eraser], "remaining": erasure.remaining}


# --- failing together -------------------------------------------------------------------------------------------------


def alone(rank, depth):
    if world()[0] == rank:
        raise RuntimeError(f"at {depth}")


def outcome(act):
    try:
        return act()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"


def agreed():
    """What comes of failures in different places; after each, all stand at the same collective."""

    def plain():
        with together():
            return gathered(world()[0])

    def between():
        with together():
            gathered(1)
            alone(1, 1)
            return gathered(2)

    def last():
        with together():
            gathered(1)
            alone(1, 1)

    def inner():
        with together():
            gathered(1)
            found = outcome(nested)
            return [found, gathered("on")]

    def nested():
        with together():
            gathered(1)
            alone(1, 2)
            gathered(2)

    def outer_in_inner():
        with together():
            alone(0, 1)  # the other is inside by then
            return outcome(ok)

    def ok():
        with together():
            return gathered(3)

    def both():
        with together():
            alone(0, 1)
            return outcome(nested_at_once)

    def nested_at_once():
        with together():
            alone(1, 2)
            gathered(4)

    def everybody():
        with together():
            raise ValueError("all")

    found = {}
    for act in (plain, between, last, inner, outer_in_inner, both, everybody):
        found[act.__name__] = outcome(act)
        found[f"after {act.__name__}"] = gathered(world()[0])
    return found


LOOPED = {
    "together": agreed,
    **{f"{kind} monitored": partial(monitored, kind) for kind in ("ddp", "fabric", "fsdp")},
    **{f"{kind} erased": partial(erased, kind) for kind in ("ddp", "fsdp")},
    **{f"{kind} {penalty}": partial(suppressed, kind, penalty) for kind in ("hand", "ddp", "fsdp") for penalty in PENALTIES},
    **{f"fsdp {penalty}, labels missing": partial(suppressed, "fsdp", penalty, 2) for penalty in PENALTIES},
    "refused": refused,
}


def looped(name):
    return LOOPED[name]()
