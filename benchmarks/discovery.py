"""Nobody has labelled the shortcut: is it found, and does suppressing what was found help?

A plain net is trained; `DiscoverFeatures` looks at one layer every few epochs, knowing the task's label and nothing of the
shortcut. At the end, "top 3" is the largest absolute correlation, on the *test* part, of the code of one of the three most
suspicious features with the true shortcut; "first" that of the most suspicious one, "as 0 and 1" that of the label it
becomes when it is promoted. Several dictionaries look at the same nets: readable splits (the default), a top-k sparse
autoencoder, and for comparison principal components, independent components (FastICA) and non-negative matrix factors, these
three by scikit-learn.

Then the most suspicious feature is promoted, with nobody looking at it, and suppressed in a new run as any confounder is,
with the values that the README recommends (a budget of .02; weight 1), not tuned; and cut out of the plain net by `edit`.
Beside them: plain; the same with the true labels; and JTT (Liu et al. 2021: train, then train anew with the errors of the
first net counted more often), its two knobs tuned in four trials by the worst group on the validation part, for which JTT, as
in the paper, is given the true labels of the shortcut: ours never sees them.

Tasks as in `benchmarks/suppression.py`; "demo 95 %" looks at validation digits whose backgrounds agree as often as in
training. "time" is that of one event over a bare forward pass through the same samples, CPU time.

    python benchmarks/discovery.py             # demo 5 seeds, coloured MNIST 3; about 25 minutes on one core
    python benchmarks/discovery.py --quick     # does it all run? nothing is kept

One JSON line per net in results/discovery.jsonl; what is there already is not run again.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from shortcuts.jtt import repeated
from shortcuts.methods import BATCH, KEYS
from shortcuts.report import spread
from shortcuts.runs import measured, quiet_trainer
from shortcuts.tasks import Coloured, Demo, Fields, Task, loader, mnist_file
from sklearn.decomposition import NMF, PCA, FastICA
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_interp as interp
from lightning_interp import penalties
from lightning_interp.demo import GrassyDigits
from lightning_interp.discovery import Dictionary, SplitDictionary, TopKDictionary
from lightning_interp.functional.splits import cut

RESULTS = Path(__file__).parent / "results" / "discovery.jsonl"
VERSION = 1
TUNING_SEED = 100
SEEDS = {"demo": 5, "coloured": 3}
LAYERS = {"demo": ("encoder.conv3", "encoder.conv4", "encoder.flatten"), "coloured": ("encoder.3", "encoder.5")}
PROMOTED = {"demo": "encoder.conv4", "coloured": "encoder.5"}  # where the feature that is suppressed is looked for
EVERY = {"demo": 7, "coloured": 3}  # epochs: the first, the last, and one or two between
JTT = ((1, 5), (1, 20), (3, 5), (3, 20))  # epochs of the first net, weight of its errors


class Linear:
    """A decomposition that scikit-learn has fitted, as a code."""

    def __init__(self, model: Any, chosen: Tensor, threshold: Tensor) -> None:
        self.model, self.chosen, self.threshold = model, chosen, threshold

    def codes(self, h: Tensor) -> Tensor:
        x = h.double().numpy()
        found = self.model.transform(x.clip(0) if isinstance(self.model, NMF) else x)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float64))[:, self.chosen]

    def select(self, index: Tensor) -> "Linear":
        return Linear(self.model, self.chosen[index], self.threshold[index])


class ByScikitLearn(Dictionary):
    """Ten components by one of scikit-learn's decompositions."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, h: Tensor, starts: Tensor, named: Tensor, seed: int) -> Linear:
        x = h.double().numpy()
        model = copy.deepcopy(self.model).set_params(random_state=seed).fit(x.clip(0) if isinstance(self.model, NMF) else x)
        every = Linear(model, torch.arange(model.n_components), torch.zeros(model.n_components))
        return Linear(model, every.chosen, cut(every.codes(h)).threshold)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


DICTIONARIES = {
    "readable splits": SplitDictionary,
    "top-k autoencoder": TopKDictionary,
    "PCA": lambda: ByScikitLearn(PCA(10)),
    "FastICA": lambda: ByScikitLearn(FastICA(10, max_iter=400)),
    "NMF": lambda: ByScikitLearn(NMF(10, init="nndsvda", max_iter=400)),
}


def fit(
    task: Task, seed: int, callbacks: list[L.Callback], data: DataLoader, val: Fields | None = None, epochs: int = 0
) -> nn.Module:
    """Train the task's net."""
    L.seed_everything(seed, verbose=False)
    net = task.net()
    trainer = quiet_trainer(epochs or task.epochs, callbacks)
    trainer.fit(net, data, None if val is None else loader(val, 512))
    return net.eval()


def training(task: Task, seed: int) -> DataLoader:
    """The training part."""
    return loader(task.fields("train", seed), BATCH, shuffle=True)


def held_out(task: Task, seed: int, confounded: bool) -> Fields:
    """The validation part; of the demo also with backgrounds as in training."""
    return GrassyDigits("val", task.setting, crops=4, seed=seed).fields if confounded else task.fields("val", seed)


def correlation(a: Tensor, b: Tensor) -> float:
    """Its absolute value."""
    found = float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])
    return abs(found) if np.isfinite(found) else 0.0


def found(task: Task, discover: interp.DiscoverFeatures, test: Fields) -> dict[str, Any]:
    """How the three most suspicious features go with the true shortcut on the test part."""
    event = discover.latest
    true, top = test[task.confounder.name], event.features[:3]
    codes = [discover.promote(f.name, "code", "continuous").read(test)[0] for f in top]
    sides = discover.promote(top[0].name, "sides").read(test)[0]
    each = [correlation(c, true) for c in codes]
    return {
        "top3": max(each),
        "first": each[0],
        "binary": correlation(sides, true),
        "contribution": top[0].contribution,
        "causal": top[0].causal,
        "unexplained": event.unexplained,
        "clarity": top[0].clarity,
        "stability": top[0].stability,
        "seconds": event.cost_seconds,
    }


def bare_pass(net: nn.Module, fields: Fields) -> float:
    """CPU seconds, the median of five."""
    took = []
    for _ in range(5):
        start = time.process_time()
        with torch.no_grad():
            for part in fields["image"].split(512):
                net(part)
        took.append(time.process_time() - start)
    return statistics.median(took)


def look(task: Task, seed: int, confounded: bool) -> tuple[nn.Module, dict[str, Any], interp.Confounder]:
    """Train a plain net, look at it with every dictionary, promote the most suspicious feature."""
    val, test = held_out(task, seed, confounded), task.fields("test", seed)
    places = {**KEYS, "cluster": task.cluster, "every_n_epochs": EVERY[task.name], "show": 0}
    looking = {
        (layer, name): interp.DiscoverFeatures(layer, task.given, dictionary=make(), prefix=name, **places)
        for layer in LAYERS[task.name]
        for name, make in DICTIONARIES.items()
    }
    net = fit(task, seed, list(looking.values()), training(task, seed), val)
    rows = {f"{layer}, {name}": found(task, d, test) for (layer, name), d in looking.items()}
    best = looking[PROMOTED[task.name], "readable splits"]
    kept = {key: value[: best.latest.n] for key, value in val.items()}
    cost = best.latest.cost_seconds / bare_pass(net, kept)
    return net, {"features": rows, "cost": cost}, best.promote(best.latest.features[0].name, "found")


def suppressed(task: Task, seed: int, confounder: interp.Confounder, penalty: dict[str, float], val: Fields) -> nn.Module:
    """Train with a confounder's contribution penalised."""
    suppress = interp.SuppressConfounder(
        confounder, task.given, penalty=penalties.ContributionPenalty(), start_epoch=0, ramp_epochs=1, **KEYS, **penalty
    )
    monitors = []
    if "budget" in penalty:
        variables = [*task.given, confounder]
        monitors.append(interp.ConceptMonitor(variables, data=loader(val, 512), cluster=task.cluster, warn_above=1.0, **KEYS))
    return fit(task, seed, [*monitors, suppress], training(task, seed))


def edited(task: Task, net: nn.Module, confounder: interp.Confounder, val: Fields) -> nn.Module:
    """The plain net with the confounder cut out below the head."""
    net = copy.deepcopy(net)
    layer = {"demo": "encoder.flatten", "coloured": "encoder.5"}[task.name]
    interp.edit(net, layer, confounder, loader(val, 512), task.given, cluster=task.cluster, **KEYS)
    return net


def just_train_twice(task: Task, seed: int, epochs: int, weight: int) -> nn.Module:
    """Liu et al. 2021: the errors of a first net, trained a little, are repeated in the data of the second."""
    first = fit(task, seed, [], training(task, seed), epochs=min(epochs, task.epochs))
    fields = repeated(task, first, task.fields("train", seed), weight)
    # Its epochs are longer; as many steps as the others' would train it less on what is rare.
    return fit(task, seed, [], loader(fields, BATCH, shuffle=True))


def run(task: Task, seed: int, confounded: bool, jtt: tuple[int, int]) -> dict[str, Any]:
    """Everything for one seed."""
    test, val = task.fields("test", seed), held_out(task, seed, confounded)
    net, row, feature = look(task, seed, confounded)
    true = task.confounder
    nets = {"plain": net}
    for name, label in (("found", feature), ("true", true)):
        if name == "true" and confounded:
            continue
        nets[f"ContributionPenalty 1, {name} labels"] = suppressed(task, seed, label, {"weight": 1.0}, val)
        nets[f"ContributionPenalty, budget .02, {name} labels"] = suppressed(task, seed, label, {"budget": 0.02}, val)
        nets[f"edit, {name} labels"] = edited(task, net, label, val)
    if not confounded:
        nets["JTT"] = just_train_twice(task, seed, *jtt)
    return {**row, "nets": {name: measured(task, model, test) for name, model in nets.items()}, "jtt": list(jtt)}


def tuned(task: Task, seed: int) -> tuple[int, int]:
    """JTT's knobs, by the worst group on the validation part: with the true labels."""
    worst = {knobs: measured(task, just_train_twice(task, seed, *knobs), task.fields("val", seed))["worst"] for knobs in JTT}
    return max(worst, key=lambda knobs: worst[knobs] or 0.0)


def name_of(row: dict[str, Any]) -> str:
    """Of the task, with how the validation part is drawn."""
    return f"{row['task']}, validation as in training" if row["confounded"] else row["task"]


def tasks_of(rows: list[dict]) -> dict[str, list[dict]]:
    """{task: its rows}."""
    return {task: [r for r in rows if name_of(r) == task] for task in dict.fromkeys(map(name_of, rows))}


def features_table(rows: list[dict]) -> str:
    """What was found, mean ± sd over seeds."""
    lines = ["| task | layer, dictionary | top 3 | first | as 0 and 1 | its share | deleted |", "|---" * 7 + "|"]
    for task, mine in tasks_of(rows).items():
        for which in mine[0]["features"]:
            each = [r["features"][which] for r in mine]
            cells = [spread([e[key] for e in each], 2) for key in ("top3", "first", "binary", "contribution")]
            cells.append(spread([e["causal"] for e in each if e["causal"] is not None], 2))
            lines.append(f"| {task} | {which} | {' | '.join(cells)} |")
    return "\n".join(lines) if rows else ""


def nets_table(rows: list[dict]) -> str:
    """What came of it, mean ± sd over seeds, on the test part."""
    lines = ["| task | net | accuracy | worst group | do | share |", "|---" * 6 + "|"]
    for task, mine in tasks_of(rows).items():
        for which in mine[0]["nets"]:
            each = [r["nets"][which] for r in mine]
            columns = {"accuracy": 3, "worst": 3, "do": 2, "share": 3}
            cells = [spread([e[key] for e in each if e[key] is not None], digits) for key, digits in columns.items()]
            lines.append(f"| {task} | {which} | {' | '.join(cells)} |")
    return "\n".join(lines) if rows else ""


def report(rows: list[dict]) -> None:
    """Print the tables."""
    print(features_table(rows), nets_table(rows), sep="\n\n", end="\n\n")
    for task, mine in tasks_of(rows).items():
        cost = spread([r["cost"] for r in mine], 1)
        print(f"{task}: an event costs {cost} bare forward passes; JTT's epochs and weight {mine[0]['jtt']}")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one epoch, one seed; nothing is kept")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tasks: list[Task] = [Demo(epochs=1), Coloured(500, 1, 500)] if args.quick else [Demo(), Coloured()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quick.jsonl" if args.quick else RESULTS
        path.parent.mkdir(exist_ok=True)
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [r for r in rows if r["version"] == VERSION]
        for task in tasks:
            if task.name not in args.task or (isinstance(task, Coloured) and mnist_file() is None):
                print(
                    f"{task.name}: skipped" + ("" if task.name not in args.task else ", no mnist.npz in LIGHTNING_INTERP_DATA")
                )
                continue
            jtt = JTT[0] if args.quick else None
            for confounded in (False, True) if isinstance(task, Demo) else (False,):
                for seed in range(1 if args.quick else SEEDS[task.name]):
                    wanted = {"version": VERSION, "task": task.name, "confounded": confounded, "seed": seed}
                    if any(wanted.items() <= r.items() for r in rows):
                        continue
                    jtt = jtt or tuned(task, TUNING_SEED)
                    start = time.process_time()
                    rows.append({**wanted, **run(task, seed, confounded, jtt), "seconds": time.process_time() - start})
                    with path.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(f"{name_of(rows[-1])} seed {seed}: {rows[-1]['seconds']:.0f} s", flush=True)
        report(rows)


if __name__ == "__main__":
    main()
