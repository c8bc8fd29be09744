"""Does cutting a trained net take the confounder out? Surgery on two nets, against retraining the last layer.

Nets are trained on digits on grass or on coloured MNIST (see `shortcuts/tasks.py`), plain and with `BalancedReweighting`, and
then cut. Every cut is fitted to the same validation images, none of them trained on (digits on grass: both backgrounds equally;
coloured: of the two training environments), and measured on the test part:

    nothing            the net as it is
    edit, LAYER        LEACE at the layer, folded into the weights: of the layer itself at `encoder.conv4.0`, the last
                       convolution, and `encoder.4`, the last linear layer of the MLP; else of what reads it
    edit, train rows   the same at the layer that feeds the head, fitted to the rows that the net was trained on
    zero_weight        the coefficient of the confounder in the head set to zero
    DFR                the head trained anew: Deep Feature Reweighting (Kirichenko et al. 2023), l1 logistic regression on the
                       standardised activation, C by the worst group on half of the rows, then the mean over 20 balanced subsets

"do" is the true effect of the confounder in logits, "off" the largest difference of test logits to the hooked erasure, "time"
CPU time as a multiple of a bare forward pass over the rows that were fitted to.

    python benchmarks/cutting.py                    # digits on grass, 5 seeds
    python benchmarks/cutting.py --task coloured    # 3 seeds; MNIST is looked for in $LIGHTNING_INTERP_DATA
    python benchmarks/cutting.py --seeds 2
    python benchmarks/cutting.py --quick       # does it all run? nothing is kept

One JSON line per net and cut in results/cutting.jsonl; what is there already is not run again.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from shortcuts import dfr
from shortcuts.methods import KEYS, balanced
from shortcuts.runs import measured, outputs, quiet_trainer
from shortcuts.tasks import Coloured, Demo, Fields, Task, loader, mnist_file
from torch import nn

import lightning_interp as interp
from lightning_interp.functional.folding import pointwise

RESULTS = Path(__file__).parent / "results" / "cutting.jsonl"
VERSION = 1  # of a row; others are not read
TRAININGS = ("plain", "BalancedReweighting")
SEEDS = {"demo": 5, "coloured": 3}
LAYERS = {  # the first feeds the head
    "demo": ("encoder.flatten", "encoder.conv4", "encoder.conv4.0"),
    "coloured": ("encoder.5", "encoder.4", "encoder.3"),
}
COLUMNS = ("accuracy", "worst", "do", "share", "off", "time")


def cuts(task: str) -> tuple[str, ...]:
    """What is tried on a task."""
    return ("nothing", *(f"edit, {layer}" for layer in LAYERS[task]), "edit, train rows", "zero_weight", "DFR")


def train(task: Task, training: str, seed: int) -> L.LightningModule:
    """A net, trained as in `benchmarks/suppression.py`."""
    L.seed_everything(seed, verbose=False)
    net = task.net()
    trainer = quiet_trainer(task.epochs, [balanced(task)] if training != "plain" else [])
    trainer.fit(net, loader(task.fields("train", seed), 128, shuffle=True))
    return net


def cut(task: Task, net: nn.Module, name: str, seed: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Cut a net; gives the hooked erasure's test logits where there is one to compare with."""
    held_out = task.fields("val", seed)
    places = {**KEYS, "cluster": task.cluster}
    if name.startswith("edit"):
        layer = LAYERS[task.name][0] if name == "edit, train rows" else name.split(", ")[1]
        data = loader(task.fields("train", seed) if name == "edit, train rows" else held_out, 512)
        plain = copy.deepcopy(net)
        eraser = interp.edit(net, layer, task.confounder, data, task.given, **places).eraser
        plain.get_submodule(layer).register_forward_hook(lambda m, args, out: pointwise(out, eraser, 1))
        return lambda images: outputs(plain, images)
    if name == "zero_weight":
        places.pop("output")
        plain = copy.deepcopy(net)
        eraser = interp.zero_weight(net, "head", task.confounder, loader(held_out, 512), task.given, **places).eraser
        plain.head.register_forward_pre_hook(lambda m, args: pointwise(args[0], eraser, 1))
        return lambda images: outputs(plain, images)
    if name == "DFR":
        dfr.retrain(task, net, held_out, seed)
    return None


def seconds_of_a_pass(net: nn.Module, fields: Fields) -> float:
    """CPU time of a bare forward pass, the median of five."""
    spent = []
    for _ in range(5):
        start = time.process_time()
        outputs(net, fields["image"])
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def run(task: Task, net: nn.Module, name: str, seed: int) -> dict[str, object]:
    """Cut a copy of a net and measure it."""
    cut_net = copy.deepcopy(net)
    part = task.fields("train" if name == "edit, train rows" else "val", seed)
    bare = seconds_of_a_pass(cut_net, part)
    start = time.process_time()
    hooked = cut(task, cut_net, name, seed)
    spent = time.process_time() - start
    test = task.fields("test", seed)
    row: dict[str, object] = dict(measured(task, cut_net, test))
    row["time"] = None if name == "nothing" else spent / bare
    row["off"] = None if hooked is None else float((hooked(test["image"]) - outputs(cut_net, test["image"])).abs().max())
    return row


def table(rows: list[dict], task: str) -> str:
    """Mean ± sd over seeds."""
    what = {"demo": "grass", "coloured": "colour"}[task]
    heads = ["accuracy", "worst group", f"do({what}), logits", f"share of {what}", "off", "time"]
    lines = [f"| net | cut | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for training in TRAININGS:
        for name in cuts(task):
            mine = [r for r in rows if r["training"] == training and r["cut"] == name]
            if mine:
                cells = [_spread([r[column] for r in mine], column) for column in COLUMNS]
                lines.append(f"| {training} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float | None], column: str) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    if column == "off":
        return f"{max(known):.0e}"
    if column == "time":
        return f"{statistics.median(known):.0f}"
    sd = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{sd}"


def report(rows: list[dict], task: str = "demo") -> None:
    """Print the table of a task."""
    mine = [r for r in rows if r["version"] == VERSION and r.get("task", "demo") == task]
    if not mine:
        return
    print(f"\n{task}: {len({r['seed'] for r in mine})} seeds, test part, mean ± sd; off is the largest, time the median")
    print(table(mine, task))


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SEEDS, default="demo")
    parser.add_argument("--seeds", type=int, help="5 on digits on grass, 3 on coloured MNIST")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed; nothing is kept")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if args.task == "coloured" and mnist_file() is None:
        print("coloured is left out: LIGHTNING_INTERP_DATA is not set, or has no mnist.npz")
        return
    kind = {"demo": Demo, "coloured": Coloured}[args.task]
    task = kind(epochs=1) if args.quick else kind()
    named = {} if task.name == "demo" else {"task": task.name}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quick.jsonl" if args.quick else RESULTS
        path.parent.mkdir(exist_ok=True)
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for seed in range(1 if args.quick else args.seeds or SEEDS[args.task]):
            for training in TRAININGS:
                keys = [
                    {
                        **named,
                        "version": VERSION,
                        "agreement": task.setting,  # or images of each environment
                        "epochs": task.epochs,
                        "training": training,
                        "cut": name,
                        "seed": seed,
                    }
                    for name in cuts(task.name)
                ]
                missing = [k for k in keys if not any(k.items() <= r.items() for r in rows)]
                net = train(task, training, seed) if missing else None
                for key in missing:
                    row = {**key, **run(task, net, str(key["cut"]), seed)}
                    rows.append(row)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(f"seed {seed} {training}, {key['cut']}: worst {row['worst']:.3f}, do {row['do']:.2f}", flush=True)
        report(rows, task.name)


if __name__ == "__main__":
    main()
