"""On two processes. `ConceptMonitor`, `DiscoverFeatures`, `EraseConfounder`: the numbers of one, the same bits on both;
`SuppressConfounder`: the weights of the penalty by hand; nobody waits for ever.

One group of two processes runs all cases (this file as a program); one process, here, runs them again.
"""

import math
import os
import socket
import subprocess
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn import functional
from torch.utils.data import Subset

import lightning_interp
from callbacks import boring
from callbacks.boring import ALL, Animals, Call
from callbacks.test_suppress_matrix import LayerHand
from lightning_interp import Concept, Confounder, DiscoverFeatures, EraseConfounder, SuppressConfounder
from lightning_interp.monitor import DEFAULT_MEASURES
from lightning_interp.penalties import ContributionPenalty, GradientPenalty, GroupDRO, IndependencePenalty, InvariancePenalty

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.13
]

N, BATCH = 101, 8  # DistributedSampler makes 102 of them: rank 1's last is a repeat
HARD_LIMIT, GROUP_LIMIT = 120, 30  # seconds: of the whole group, and of one collective


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
}
EACH_ITS_OWN = ("penalty/", "penalty_scale/")  # metrics of a process's own batch
SAMPLES = {  # of each event, where not N: two processes' batches of 8 and, at the end of an epoch, 3, less the one repeat
    "train window": [2 * (8 + 8 + 3) - 1] * 2,
    "train by steps": [2 * 3 * 8, 2 * 3 * 8, 2 * (3 + 8 + 8) - 1, 2 * 3 * 8],
    "one batch hurt": [N - 8] * 2,
    "one rank hurt": [51] * 2,
    "val, discovered": [301] * 2,
    "loader, discovered": [301] * 2,
}


def run_case(name: str, devices: int) -> dict:
    """Fit; the events and what `callback_metrics` held at the end of each epoch."""
    case = CASES[name]
    items = case.get("items", animals)()
    if devices == 1 and case.get("alone") is not None:
        items = Subset(animals(), case["alone"])
    told = dict(case["monitor"])
    if told.get("data") == "probe":
        told["data"] = boring.loader(items, batch=BATCH)
    variables = told.pop("variables", None)
    watcher, metrics = boring.monitor(variables, **{"layers": ["encoder.1", "encoder.3"], **told}), []
    look = Call(
        on_train_epoch_end=lambda run, model: metrics.append(
            {k: float(v) for k, v in run.callback_metrics.items() if not k.startswith(EACH_ITS_OWN)}
        )
    )
    by_steps = "every_n_train_steps" in told
    stop = [] if by_steps or told.get("data") == "train" else [EarlyStopping("contribution/grass", patience=9)]
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=GROUP_LIMIT)) if devices > 1 else "auto"
    seed_everything(0, verbose=False)
    erase = erase_of(case, devices) if "erased every" in case else None
    held = suppress_of(case) if "budget" in case else None
    features = discover_of(case, items) if "discover" in case else None
    run = boring.trainer(watcher, *stop, *(c for c in (erase, held, features) if c), look, devices=devices, strategy=strategy)
    training = case.get("train", animals)()
    run.fit(Exact(), boring.loader(training, shuffle=True, batch=BATCH), boring.loader(items, batch=BATCH))
    found = {"events": [boring.plain(e) for e in watcher.history], "metrics": metrics}
    if erase:
        found["eraser"] = erase.erasure.eraser and [part.tolist() for part in erase.erasure.eraser]
        found["skipped"] = erase.erasure.skipped
    if held:
        found["budget"] = held.suppression.budget.state_dict()
        found["measured"] = boring.plain(held.suppression.measured)
        found["change"] = held.certificate["change"]
    if features:
        found["features"] = [boring.plain(e) for e in features.history]
        found["scalars"] = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("discovery/")}
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


# --- penalties --------------------------------------------------------------------------------------------------------


class Trained(LightningModule):
    """With the penalty in its step if a `hand` is given; `aux` is a layer that the loss does not depend on.

    Args:
        hand: the penalty.
        manual: optimization.
        missing: the step in which rank 1 has no label of the confounder.
    """

    def __init__(self, hand=None, manual=False, missing=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head, self.aux = nn.Linear(8, 2), nn.Linear(8, 3)
        self.hand, self.automatic_optimization, self.missing, self.steps = hand, not manual, missing, 0
        if hand is not None:
            hand.forward = lambda batch: self(batch["x"])

    def above(self, h):
        return self.head(self.encoder[3](h))

    def forward(self, x):
        h = self.encoder[2](self.encoder[1](self.encoder[0](x)))
        unused = self.aux(h)
        if self.hand is None:
            return self.above(h)
        self.hand.h, self.hand.above = (unused if self.hand.aux else h), self.above
        return self.above(h.clone())

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.steps += 1
        if self.steps == self.missing and self.global_rank == 1:
            del batch["grass"]
        return batch

    def training_step(self, batch, batch_idx):
        if hasattr(self.hand, "read"):
            self.hand.read(self)
        logits = self(batch["x"])
        loss = functional.cross_entropy(logits, batch["moo"])
        if self.hand is not None and "grass" in batch:
            loss = loss + self.hand(logits, batch, loss)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ShownHand(LayerHand):
    """The gradient penalty along the difference of the example sets, read anew every third step."""

    def __init__(self):
        super().__init__("shown")
        self.balance, self.steps = False, 0

    def read(self, model):
        if self.steps % 3 == 0:
            with torch.no_grad():
                one, other = (model.encoder[:3](x).double().mean(0) for x in (WITH, WITHOUT))
            self.v = (one - other).unsqueeze(0)
        self.steps += 1

    def shown(self, margin, z, losses, extra, batch, past):
        self.cell = torch.zeros(len(z), dtype=torch.int64)
        return self.moved(margin, self.v)


WITH, WITHOUT = (Animals(n, seed).x + shift * torch.eye(6)[5] for n, seed, shift in ((45, 5, 1), (30, 6, 0)))
STRIPES = Confounder("stripes", examples=({"x": WITH}, {"x": WITHOUT}))
MIDDLE = "encoder.2"
# Each: the penalty, the same by hand, its layer, and how the run differs from the plain one.
PENALISED = {
    "contribution": (ContributionPenalty, partial(LayerHand, "contribution"), None, {}),
    "invariance": (InvariancePenalty, partial(LayerHand, "invariance"), None, {}),
    "dro": (partial(GroupDRO, 0.2), partial(LayerHand, "dro", eta=0.2), None, {}),
    "gradient": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {}),
    "independence": (IndependencePenalty, partial(LayerHand, "independence"), MIDDLE, {}),
    "off the loss's path": (IndependencePenalty, partial(LayerHand, "independence"), "aux", {}),
    "accumulated": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {"accumulate_grad_batches": 2}),
    "examples": (partial(GradientPenalty, every_n_steps=3), ShownHand, MIDDLE, {}),
    "manual": (ContributionPenalty, partial(LayerHand, "contribution"), None, {"manual": True}),
    "manual at a layer": (GradientPenalty, partial(LayerHand, "gradient"), MIDDLE, {"manual": True}),
    "labels missing": (ContributionPenalty, partial(LayerHand, "contribution"), None, {"missing": 4}),
    "labels missing at a layer": (IndependencePenalty, partial(LayerHand, "independence"), "aux", {"missing": 4}),
}


def penalised(name: str, by_hand: bool) -> torch.Tensor:
    """The weights in the end."""
    penalty, hand, layer, options = PENALISED[name]
    options = dict(options)
    made = {key: options.pop(key) for key in ("manual", "missing") if key in options}
    subject = [Confounder("grass", intervention=boring.swap_grass), [Concept("moo")]]
    if hand is ShownHand:
        subject = [STRIPES]
    places = {"output": "head", "inputs": "x", "target": "moo", "start_epoch": 0, "ramp_epochs": 0}
    callbacks = [] if by_hand else [SuppressConfounder(*subject, penalty=penalty(), layer=layer, **places)]
    strategy = DDPStrategy(
        process_group_backend="gloo", timeout=timedelta(seconds=GROUP_LIMIT), find_unused_parameters=True
    )  # `aux` is not on the loss's path
    seed_everything(0, verbose=False)
    model = Trained(hand() if by_hand else None, **made)
    if by_hand:
        model.hand.aux = layer == "aux"
    run = boring.trainer(*callbacks, devices=2, strategy=strategy, **options)
    run.fit(model, boring.loader(Animals(N, 3), shuffle=True, batch=BATCH))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def program(folder: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = os.environ["LOCAL_RANK"]
    for name in CASES:
        try:
            found = run_case(name, devices=2)
        except Exception as problem:
            found = {"error": f"{type(problem).__name__}: {problem}"}
        torch.save(found, Path(folder) / f"{name}.{rank}")
    for name in PENALISED:
        try:
            found = {"penalty": penalised(name, False), "by hand": penalised(name, True)}
        except Exception as problem:
            found = {"error": f"{type(problem).__name__}: {problem}"}
        torch.save(found, Path(folder) / f"penalised {name}.{rank}")
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort a process that ends in the ordinary way, its work long done


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """{case: what each of the two processes found}."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    tests = str(Path(__file__).parents[1])
    common["PYTHONPATH"] = str(Path(lightning_interp.__file__).parents[1])  # the one that is tested here
    ranks = []
    for rank in ("0", "1"):
        with (folder / f"log.{rank}").open("w") as log:
            command = [sys.executable, "-m", "callbacks.test_ddp", str(folder)]
            ranks.append(subprocess.Popen(command, cwd=tests, env={**common, "LOCAL_RANK": rank}, stdout=log, stderr=log))
    try:
        for process in ranks:
            process.wait(HARD_LIMIT)
    except subprocess.TimeoutExpired:
        done = sorted(p.name for p in folder.iterdir())
        pytest.fail(f"the processes wait for each other; finished were {done}")
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    logs = [(folder / f"log.{rank}").read_text()[-3000:] for rank in (0, 1)]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(logs)
    return {
        name: [torch.load(folder / f"{name}.{rank}") for rank in (0, 1)]
        for name in (*CASES, *(f"penalised {name}" for name in PENALISED))
    }


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    known = {}

    def find(name):
        if name not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[name] = run_case(name, devices=1)
        return known[name]

    return find


def differences(one, other, path=""):
    """Where two events differ by more than 1 part in 10¹⁰."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=1e-10, abs_tol=1e-12)
        return [] if same else [f"{path}: {one!r} and {other!r}"]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


@pytest.mark.parametrize("name", CASES)
def test_both_processes_have_the_same_bits(both, name):
    first, second = both[name]
    assert "error" not in first, first["error"]
    assert len(first["events"]) >= 2
    alike = [{k: v for k, v in found.items() if k != "skipped"} for found in (first, second)]  # each counts its own batches
    assert alike[0] == alike[1]


@pytest.mark.parametrize("name", CASES)
def test_every_sample_counts_once(both, name):
    found = [e["n"] for e in both[name][0]["events"]]
    assert found == SAMPLES.get(name, [N] * (2 if "by steps" not in name else len(found)))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.get("alone", ()) is not None])
def test_two_processes_find_what_one_finds(both, alone, name):
    left_out = ("step", "skipped", "notes", *CASES[name].get("left out", ()))
    ends = [
        [{k: v for k, v in event.items() if k not in left_out} for event in found["events"]]
        for found in (both[name][0], alone(name))
    ]
    assert differences(*ends) == []


def test_an_erasure_is_fitted_to_the_rows_of_both(both, alone):
    name = "val, erased"
    assert differences(both[name][0]["eraser"], alone(name)["eraser"]) == []
    assert len(both[name][0]["eraser"][1][0]) == 1
    hurt = both["val, erased, hurt labels"]
    assert hurt[0]["eraser"] is not None
    assert sorted(found["skipped"] for found in hurt) in ([0, 2], [1, 1])  # a batch of one of them in each of two epochs


def test_the_multiplier_is_the_same_on_both(both, alone):
    for name in ("val, budget", "val, budget on training"):
        first, second = both[name]
        assert first["budget"] == second["budget"]
        assert first["budget"]["multiplier"] != 1
        assert first["metrics"][1]["penalty_weight/grass"] == 1
    first = both["val, budget"][0]
    assert first["measured"] == first["events"][-1]
    assert both["val, budget on training"][0]["measured"]["n"] == N + 1  # a sampler's repeat is trained on
    one = alone("val, budget")
    assert differences([first["budget"], first["change"]], [one["budget"], one["change"]]) == []


@pytest.mark.parametrize("name", ["val, discovered", "loader, discovered"])
def test_features_are_those_of_one_process(both, alone, name):
    first, second = both[name]
    assert first["features"] == second["features"]
    one = alone(name)
    ends = [[{k: v for k, v in e.items() if k != "step"} for e in found["features"]] for found in (first, one)]
    assert differences(*ends) == []
    assert [len(e["features"]) > 2 for e in first["features"]] == [True, True]
    assert all(f["causal"] is not None for f in first["features"][-1]["features"][:3])
    assert all(len(f["strongest"]["rows"]) == 8 for f in first["features"][-1]["features"])
    assert differences(first["scalars"], one["scalars"]) == []
    assert first["scalars"]
    assert first["promoted"] == second["promoted"] == one["promoted"]


@pytest.mark.parametrize(("name", "skipped"), [("val", 0), ("one batch hurt", 1), ("one rank hurt", 7)])
def test_batches_left_out_are_counted_over_the_processes(both, name, skipped):
    assert [e["skipped"] for e in both[name][0]["events"]] == [skipped] * 2


def test_the_passes_of_the_monitors_own_have_results(both):
    for name in ("val", "train", "loader", "one batch hurt", "one rank hurt"):
        for event in both[name][0]["events"]:
            values = [s["value"] for layer in event["sensitivity"].values() for v in layer.values() for s in v.values()]
            assert len(values) == 4
            assert None not in values
            assert event["intervention"]["grass"]["value"] is not None


@pytest.mark.parametrize("name", PENALISED)
def test_a_penalty_is_that_by_hand(both, name):
    first, second = both[f"penalised {name}"]
    assert "error" not in first, first["error"]
    assert torch.equal(first["penalty"], first["by hand"])
    assert torch.equal(first["penalty"], second["penalty"])
    other = "invariance" if name != "invariance" else "dro"
    assert not torch.equal(first["penalty"], both[f"penalised {other}"][0]["penalty"])


if __name__ == "__main__":
    program(sys.argv[1])
