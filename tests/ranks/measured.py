"""What each process of a group measures: `ConceptMonitor`, `DiscoverFeatures`, `EraseConfounder` and budgets in a Trainer."""

import warnings
from functools import partial

import torch
from callbacks import boring
from callbacks.boring import ALL, Animals, Call
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, Subset

from lightning_interp import Concept, Confounder, DiscoverFeatures, EraseConfounder, SuppressConfounder
from lightning_interp.errors import InterpWarning
from lightning_interp.monitor import DEFAULT_MEASURES
from ranks.strategies import Sharded, strategy_of

N, BATCH = 101, 8  # DistributedSampler makes 102 of them: rank 1's last is a repeat


class Exact(LightningModule):
    """In float64, with a learning rate of 0: the same function at every event, on any number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()).double()
        self.head = nn.Linear(8, 2).double()

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self(batch["x"]), batch["moo"])

    def validation_step(self, batch, batch_idx):
        self(batch["x"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


class ExactSharded(Sharded, Exact):
    """Each process holds a part of every weight."""


class Unused(Exact):
    """A layer that no step runs: DDP must look for it."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(8, 8).double()


class Normed(Exact):
    """With statistics that every process gathers for itself in training, and has from the first before each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder[2] = nn.Sequential(self.encoder[2], nn.BatchNorm1d(8).double())


def sampled():
    """Data of one's own that a sampler has shared out already, with repeats."""
    items = animals()
    return DataLoader(items, BATCH, sampler=DistributedSampler(items, 2, 0, shuffle=True, seed=1))


def animals(nan=()):
    items = Animals(N, 3, dtype=torch.float64)
    items.x[list(nan), 4] = torch.nan
    return items


def one_rank_hurt():
    """Rank 0 reads the first 51 of the samples, rank 1 the rest, all NaN."""
    return Subset(animals(range(51, N)), [i // 2 + 51 * (i % 2) for i in range(N)])


def age_of(batch):
    return batch["x"][:, 3]


def source_of(batch):
    return batch["id"] // 2


def grass_unreadable_at_35(batch):
    if 35 in batch["id"]:
        raise ValueError("no label")
    return batch["grass"]


HURT = (35,)  # rank 1 has the odd ones: its third batch, 33, 35, … 47
WITHOUT_HURT = [i for i in range(N) if i not in range(33, 49, 2)]
PLACES = [Concept("moo"), Confounder("grass"), Confounder("place"), Concept("age", label=age_of)]


def striped():
    items = Animals(45, 5, dtype=torch.float64)
    items.x[:, 5] += 1
    return boring.loader(items, shuffle=True, batch=BATCH)


# A loader is shared out, a batch is run by one process.
SHOWN = [*PLACES[:2], Confounder("stripes", examples=(striped, {"x": Animals(30, 6, dtype=torch.float64).x}))]

# Each case: what the loop runs, what the monitor is told, and what one process runs to get the same (None: not comparable).
CASES = {
    "val": {"monitor": {"measures": ALL, "interactions": True}},
    "val, output=None": {"monitor": {"measures": ALL, "output": None}},
    "val, examples": {"monitor": {"variables": SHOWN, "measures": (*DEFAULT_MEASURES, "sensitivity", "entanglement")}},
    "val, few kept rows": {"monitor": {"max_samples": 40}},
    "val, places": {
        "monitor": {"variables": PLACES, "sample_id": "id", "cluster": source_of},
        "left out": ("coding",),  # the mean and sd of a continuous variable, and names in order of their coming
    },
    "train": {"monitor": {"data": "train", "measures": ALL}},
    "train window": {"monitor": {"data": "train", "max_samples": 40, "weights": "natural"}, "alone": None},
    "train by steps": {"monitor": {"data": "train", "every_n_train_steps": 3, "max_samples": 40}, "alone": None},
    "loader": {"monitor": {"data": "probe", "measures": ALL}},
    "loader by steps": {"monitor": {"data": "probe", "every_n_train_steps": 5}, "alone": None},
    "val, erased": {"monitor": {}, "erased every": 96, "train": partial(Subset, animals(), range(96))},
    "val, erased, hurt labels": {"monitor": {}, "erased every": 48, "grass": "unreadable at 35", "alone": None},
    "one batch hurt": {"items": partial(animals, HURT), "monitor": {"measures": ALL}, "alone": WITHOUT_HURT},
    "one rank hurt": {"items": one_rank_hurt, "monitor": {"measures": ALL}, "alone": range(51)},
    "val, discovered": {"items": partial(Animals, 301, 3, dtype=torch.float64), "monitor": {}, "discover": {}},
    "loader, discovered": {
        "items": partial(Animals, 301, 3, dtype=torch.float64),
        "monitor": {"data": "probe"},
        "discover": {"data": "probe", "sample_id": "id", "cluster": source_of},
    },
    "val, budget": {"monitor": {}, "budget": 0.05},
    "val, budget on training": {"monitor": {"output": "encoder.3"}, "budget": 0.05, "alone": None},  # an output of its own
    "val, accumulated": {"monitor": {}, "options": {"accumulate_grad_batches": 3}},
    "train by steps, accumulated": {
        "monitor": {"data": "train", "every_n_train_steps": 2},
        "options": {"accumulate_grad_batches": 3},
        "alone": None,
    },
    "val, unused parameters": {"monitor": {"measures": ALL}, "model": Unused, "strategy": {"find_unused_parameters": True}},
    "val, batch norm": {"monitor": {"measures": ALL}, "model": Normed, "alone": None},
    "loader, sampled": {"monitor": {"data": sampled}},
    "val, sharded": {"monitor": {"measures": ALL, "interactions": True}, "sharded": True},
    "val, examples, sharded": {
        "monitor": {"variables": SHOWN, "measures": (*DEFAULT_MEASURES, "sensitivity")},
        "sharded": True,
    },
    "train, sharded": {"monitor": {"data": "train", "measures": ALL}, "sharded": True},
    "loader, sharded": {"monitor": {"data": "uneven", "measures": ALL}, "sharded": True},
    "one batch hurt, sharded": {
        "items": partial(animals, HURT),
        "monitor": {"measures": ALL},
        "alone": WITHOUT_HURT,
        "sharded": True,
    },
    "val, erased, sharded": {
        "monitor": {},
        "erased every": 96,
        "train": partial(Subset, animals(), range(96)),
        "sharded": True,
    },
    "val, budget, sharded": {"monitor": {}, "budget": 0.05, "sharded": True},
    "val, discovered, sharded": {
        "items": partial(Animals, 301, 3, dtype=torch.float64),
        "monitor": {},
        "discover": {},
        "sharded": True,
    },
}
EACH_ITS_OWN = ("penalty/", "penalty_scale/", "penalty_weight/")  # metrics of a process's own batch
SAMPLES = {  # of each event, where not N: two processes' batches of 8 and, at the end of an epoch, 3, less the one repeat
    "train window": [2 * (8 + 8 + 3) - 1] * 2,
    "train by steps": [2 * 3 * 8, 2 * 3 * 8, 2 * (3 + 8 + 8) - 1, 2 * 3 * 8],
    "one batch hurt": [N - 8] * 2,
    "one rank hurt": [51] * 2,
    "val, discovered": [301] * 2,
    "loader, discovered": [301] * 2,
    "train by steps, accumulated": [2 * 6 * 8, 2 * (3 + 3 * 8) - 1, 2 * (3 * 8 + 3) - 1],  # an epoch has steps of 3, 3 and 1
    "loader, sharded": [97] * 2,
    "one batch hurt, sharded": [N - 8] * 2,
    "val, discovered, sharded": [301] * 2,
}


def measured(name: str, devices: int) -> dict:
    """Fit; the events and what `callback_metrics` held at the end of each epoch."""
    case = CASES[name]
    items = case.get("items", animals)()
    if devices == 1 and case.get("alone") is not None:
        items = Subset(animals(), case["alone"])
    told = dict(case["monitor"])
    if told.get("data") == "probe":
        told["data"] = boring.loader(items, batch=BATCH)
    elif told.get("data") == "uneven":  # one process has a batch more than the other
        told["data"] = boring.loader(Subset(items, range(97)), batch=BATCH)
    elif callable(told.get("data")):
        told["data"] = told["data"]()
    variables = told.pop("variables", None)
    watcher, metrics = boring.monitor(variables, **{"layers": ["encoder.1", "encoder.3"], **told}), []
    look = Call(
        on_train_epoch_end=lambda run, model: metrics.append(
            {k: float(v) for k, v in run.callback_metrics.items() if not k.startswith(EACH_ITS_OWN)}
        )
    )
    by_steps = "every_n_train_steps" in told
    stop = [] if by_steps or told.get("data") == "train" else [EarlyStopping("contribution/grass", patience=9)]
    sharded = case.get("sharded", False) and devices > 1
    strategy = strategy_of(devices, sharded, **case.get("strategy", {}))
    seed_everything(0, verbose=False)
    erase = erase_of(case, devices) if "erased every" in case else None
    held = suppress_of(case) if "budget" in case else None
    features = discover_of(case, items) if "discover" in case else None
    callbacks = (watcher, *stop, *(c for c in (erase, held, features) if c), look)
    run = boring.trainer(*callbacks, devices=devices, strategy=strategy, **case.get("options", {}))
    training, model = case.get("train", animals)(), ExactSharded() if sharded else case.get("model", Exact)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, boring.loader(training, shuffle=True, batch=BATCH), boring.loader(items, batch=BATCH))
    found = {"events": [boring.plain(e) for e in watcher.history], "metrics": metrics}
    found["warnings"] = [str(w.message) for w in caught if w.category is InterpWarning]
    if not sharded:
        found["weights"] = model.state_dict()
    if erase:
        found["eraser"] = erase.erasure.eraser and [part.tolist() for part in erase.erasure.eraser]
        found["skipped"] = erase.erasure.skipped
    if held:
        found["own"] = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith(EACH_ITS_OWN)}
        found["budget"] = held.suppression.budget.state_dict()
        found["measured"] = boring.plain(held.suppression.measured)
        found["change"] = held.certificate["change"]
    if features:
        found["features"] = [boring.plain(e) for e in features.history]
        found["scalars"] = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("discovery/")}
        if sharded:
            return found
        lawn = features.promote(features.latest.features[0].name, "lawn")
        found["promoted"] = lawn.read({"x": Animals(64, 2, dtype=torch.float64).x})[0].tolist()
    return found


def discover_of(case: dict, items) -> DiscoverFeatures:
    """Looks at the first layer, where only moo has a name."""
    told = dict(case["discover"])
    if told.get("data") == "probe":
        told["data"] = boring.loader(items, batch=BATCH)
    return DiscoverFeatures("encoder.1", [Concept("moo")], output="head", target="moo", inputs="x", **told)


def erase_of(case: dict, devices: int) -> EraseConfounder:
    """Fits after so many rows of all processes."""
    options = {"start_rows": 1, "memory_rows": 10**12, "every_n_steps": case["erased every"] // BATCH // devices}
    label = grass_unreadable_at_35 if case.get("grass") else "grass"
    return EraseConfounder(Confounder("grass", label=label), "encoder.2", [Concept("moo")], **options)


def suppress_of(case: dict) -> SuppressConfounder:
    """Acts from the second epoch on."""
    options = {"output": "head", "target": "moo", "inputs": "x", "start_epoch": 1, "ramp_epochs": 0}
    return SuppressConfounder(Confounder("grass"), [Concept("moo")], budget=case["budget"], **options)
