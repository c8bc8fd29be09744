"""Which measure tells the truth? What people compute today and ours, against do(confounder), on many differently trained nets.

Digits on grass, coloured MNIST, and coloured MNIST with a corner patch that the nets use too, that goes with the colour
and that nobody names. Small nets of two builds, trained with many agreements of confounder and label, plainly, with decay,
penalties or reweighting, stopped early and late, or edited. Every measure is computed on the same held-out images, by the
package that has it; a measure of layers at three depths. The truth is the mean change of the margin when the confounder is
exchanged on the same image, on these images and on other held-out ones. Every net has images of its own.

    python benchmarks/truth.py             # about 20 minutes on one core
    python benchmarks/truth.py --quick     # 4 nets, fewer images; nothing is kept

MNIST is looked for in $LIGHTNING_INTERP_DATA; captum, concept-erasure and scikit-learn are the extra `bench`. One JSON line per
checkpoint and probe set in results/truth.jsonl; a net that is there already is not trained again.
"""

import argparse
import json
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from measures import data, missing
from measures.checkpoints import BUILDS, CONFOUNDER, KEYS, LABEL, STOPS, Net, checkpoints, nets
from measures.erasing import losses
from measures.layer import activations, gradients, margin
from measures.nets import DEPTHS, LAYERS, Staged
from measures.probing import probe_accuracy
from measures.report import tables
from measures.tcav import CLASS, captum_tcav, fast_cav, several, tcav_score
from shortcuts.tasks import loader, mnist_file
from torch import Tensor

import lightning_interp as interp

RESULTS = Path(__file__).parent / "results" / "truth.jsonl"
VERSION = 1
PROBES = {"demo": (0.5, 0.9), "coloured": (0.5, 0.9), "hidden": (0.5,)}  # agreement of confounder and label
EXAMPLES, RANDOM_SETS, SCORED = 150, 3, 300  # images of a TCAV set, sets of random images, images scored
SEEDS = 2


def probe_set(task: str, agreement: float, seed: int, part: str = "probe") -> data.Fields:
    """Held-out images with the confounder known and exchangeable."""
    if task == "demo":
        return data.digits_on_grass(part, agreement, seed)
    return data.coloured_digits(part, agreement, seed, *((0.5, True) if task == "hidden" else ()))


def truth(net: Staged, fields: data.Fields, at: object = data.at_level) -> float:
    """Mean change of the margin, in logits, when a variable goes from 0 to 1 on the same images."""
    return float((margin(net, at(fields, 1)) - margin(net, at(fields, 0))).mean())


def ours(net: Staged, fields: data.Fields, cluster: str | None) -> dict:
    """Effect with interval and robustness value, share, and sensitivity at every depth."""
    measures = ["contribution", "sensitivity"]
    event = interp.explain(
        net, loader(fields, 512), [LABEL, CONFOUNDER], LAYERS, measures=measures, cluster=cluster, progress=False, **KEYS
    )
    effect, share = event.effect["confounder"], event.contribution["confounder"]
    found = {"effect": effect.value, "low": effect.low, "high": effect.high, "robustness": effect.robustness}
    found["share"] = share.value
    found["sensitivity"] = {d: event.sensitivity[f"encoder.{d}"]["confounder"][""].value for d in DEPTHS}
    if "hidden" in fields:
        both = [LABEL, CONFOUNDER, interp.Confounder("hidden", kind="binary")]
        named = interp.explain(net, loader(fields, 512), both, measures=["contribution"], progress=False, **KEYS)
        found["named"] = {key: getattr(named.effect["confounder"], key) for key in ("value", "low", "high")}
    return found


def mean_difference(values: Tensor, z: Tensor) -> Tensor:
    """Mean of the rows with the variable less that of those without."""
    return values[z == 1].mean(0) - values[z == 0].mean(0)


def theirs(net: Staged, fields: data.Fields, seed: int) -> dict:
    """Every other measure, those of layers as {depth: value}."""
    z, images = fields["confounder"], fields["image"]
    h = activations(net, images)
    scored = torch.arange(len(z))[fields["label"] == CLASS][:SCORED]
    slopes = gradients(net, images[scored])
    found: dict = {"difference of mean outputs": float(mean_difference(margin(net, images), z))}
    generator = torch.Generator().manual_seed(seed)
    sets = [images[rows] for rows in image_sets(z, generator)]
    concept, without, *others = sets
    pairs = [(concept, other) for other in (*others, without)]
    random.seed(seed)
    np.random.seed(seed)
    tcav = captum_tcav(net, LAYERS, pairs, images[scored])
    fitted = torch.rand(len(z), generator=generator) < 0.5
    if "source" in fields and len(fields["source"].unique()) < len(z):  # no digit on both sides
        fitted = fields["source"] % 2 == 0
    each: dict[str, dict[str, float]] = {}
    for depth, layer in zip(DEPTHS, LAYERS):
        *by_random, relative = tcav[layer]
        mean = several(by_random)
        direction = fast_cav(h[depth][z == 1], h[depth])
        lost = losses(net, depth, h[depth], fields)
        each[depth] = {
            "TCAV score": mean["score"],
            "TCAV derivative": mean["derivative"],
            "TCAV score, with against without": relative[0],
            "TCAV derivative, with against without": relative[1],
            "FastCAV, TCAV score": tcav_score(slopes[depth], direction),
            "gradient × FastCAV direction": float(slopes[depth].mean(0) @ direction),
            "gradient × mean difference": float(slopes[depth].mean(0) @ mean_difference(h[depth], z)),
            "probe accuracy": probe_accuracy(h[depth], z, fitted),
            **{f"LEACE, {what}": value for what, value in lost.items()},
        }
    return found | {name: {depth: each[depth][name] for depth in DEPTHS} for name in each[DEPTHS[0]]}


def image_sets(z: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows with the confounder, rows without, and sets of random rows."""
    for value in (1, 0):
        rows = (z == value).nonzero().flatten()
        yield rows[torch.randperm(len(rows), generator=generator)[:EXAMPLES]]
    for _ in range(RANDOM_SETS):
        yield torch.randperm(len(z), generator=generator)[:EXAMPLES]


def measure(net: Net, model: Staged, sets: dict[float, data.Fields], other: data.Fields, seed: int) -> Iterator[dict]:
    """A row for every probe set."""
    elsewhere = truth(model, other)
    cluster = "source" if net.task == "demo" else None
    for agreement, fields in sets.items():
        row = {"probe": agreement, "n": len(fields["label"]), "do": truth(model, fields), "do_elsewhere": elsewhere}
        if "hidden" in fields:
            row["do_hidden"] = truth(model, fields, data.hidden_at_level)
        yield {**row, "ours": ours(model, fields, cluster), "theirs": theirs(model, fields, seed)}


class Book:
    """The rows so far; a net that is among them is not trained again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [r for r in map(json.loads, lines) if r["version"] == VERSION]

    def run(self, net: Net, seed: int, probe_seed: int, stops: tuple[int, ...]) -> None:
        """Train, measure and write, if need be; all of a net at once, on images of its own."""
        key = {"version": VERSION, **asdict(net), "seed": seed, "stops": max(stops)}
        if any(key.items() <= r.items() for r in self.rows):
            return
        start, rows = time.process_time(), []
        sets = {agreement: probe_set(net.task, agreement, probe_seed) for agreement in PROBES[net.task]}
        other = probe_set(net.task, 0.5, probe_seed, "truth")
        for name, model in checkpoints(net, seed, stops):
            model.eval()
            rows += [{**key, "checkpoint": name, **row} for row in measure(net, model, sets, other, seed)]
        self.rows += rows
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        effects = ", ".join(f"{r['do']:.2f}" for r in rows)
        print(f"{net}: do {effects}, {time.process_time() - start:.0f} s", flush=True)


def quick_nets(task: str) -> list[Net]:
    """Five that differ."""
    both = {"hidden": [(0.95, 0.5), (0.5, 0.95), (0.5, 0.5), (0.9, 0.7), (0.2, 0.8)]}
    chosen = both.get(task, [(a, None) for a in (0.95, 0.8, 0.65, 0.5, 0.2)])
    return [Net(task, BUILDS[task][-1], c, h) for c, h in chosen]


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(PROBES), default=list(PROBES))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="nets of each kind")
    parser.add_argument("--quick", action="store_true", help="5 nets of each task, stopped once; nothing is kept")
    args = parser.parse_args()
    if why := missing():
        print(why)
        return
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder) / "quick.jsonl" if args.quick else RESULTS)
        for seed in range(1 if args.quick else args.seeds):
            for task in args.task:
                if task != "demo" and mnist_file() is None:
                    print(f"{task}: skipped, LIGHTNING_INTERP_DATA is not set or holds no mnist.npz")
                    continue
                chosen = quick_nets(task) if args.quick else nets(task)
                for i, net in enumerate(chosen):
                    book.run(net, seed, seed * len(chosen) + i, STOPS[task][:1] if args.quick else STOPS[task])
        report(book.rows)


def report(rows: list[dict]) -> None:
    """Print the tables."""
    for name, found in tables(rows).items():
        print(f"\n{name}\n\n{found}")


if __name__ == "__main__":
    main()
