"""What erasing a variable at a layer does to a net: the preview of an edit, and what it costs.

A plain net is trained on the confounded data; on the test part every variable is erased at every layer named, and the equation
is fitted again. `demo`: digits on grass, 349 digits × 4 crops, each on both backgrounds equally often; every convolution, and
the layer that feeds the head. `coloured`: coloured MNIST, 10,000 images; both layers of the MLP (see `shortcuts/tasks.py`). The
random subspace is the mean of 3 draws. Times are CPU time on one core, over that of one bare forward pass over the same
samples: of the measure, and of the same measure with every pass run from the input.

    python benchmarks/mediation.py                    # 5 nets × 15 epochs, about 7 minutes on one core
    python benchmarks/mediation.py --task coloured    # 3 nets × 10 epochs; MNIST is looked for in $LIGHTNING_INTERP_DATA
    python benchmarks/mediation.py --quick            # 1 net × 2 epochs; nothing is kept

One JSON line per net in results/mediation.jsonl; a net that is there already is not trained again.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
from shortcuts.methods import BATCH, KEYS
from shortcuts.tasks import Coloured, Demo, Task, loader, mnist_file
from torch import nn

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData
from lightning_interp.passes.above import Above

RESULTS = Path(__file__).parent / "results" / "mediation.jsonl"
LAYERS = {"demo": ["encoder.conv*", "encoder.flatten"], "coloured": ["encoder.3", "encoder.5"]}
SEEDS, REPEATS = {"demo": 5, "coloured": 3}, 3


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the median of a few."""
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return statistics.median(took)


def explained(task: Task, model: nn.Module, batches: list, *measures: str) -> interp.Event:
    """One event."""
    variables, how = [*task.given, task.confounder], {"layers": LAYERS[task.name], "cluster": task.cluster, **KEYS}
    return interp.explain(model, batches, variables, measures=["contribution", *measures], **how)


@torch.no_grad()
def forward(model: nn.Module, batches: list) -> None:
    """A bare pass."""
    for batch in batches:
        model(batch["image"])


def costs(task: Task, model: nn.Module, batches: list) -> dict[str, float]:
    """Seconds of a bare pass, and of the measures in units of it."""
    bare = seconds(lambda: forward(model, batches))
    event = seconds(lambda: explained(task, model, batches))
    above = seconds(lambda: explained(task, model, batches, "mediation"))
    with patch.object(Above, "_known", lambda self, name: {}):
        whole = seconds(lambda: explained(task, model, batches, "mediation"))
    entangled = seconds(lambda: explained(task, model, batches, "entanglement"))
    over = {"mediation": above, "mediation from the input": whole, "entanglement": entangled}
    return {"bare": bare, **{name: (t - event) / bare for name, t in over.items()}}


def run(task: Task, seed: int) -> dict:
    """Train, erase, measure."""
    L.seed_everything(seed, verbose=False)
    model = task.net()
    trainer = L.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    if task.name == "demo":
        trainer.fit(model, datamodule=GrassyDigitsData(seed=seed))
    else:
        trainer.fit(model, loader(task.fields("train", seed), BATCH, shuffle=True))
    model.eval()
    batches = list(loader(task.fields("test", seed), BATCH))
    event = explained(task, model, batches, "mediation", "entanglement", "groups")
    print(event)
    return {
        **({} if task.name == "demo" else {"task": task.name}),
        "seed": seed,
        "epochs": task.epochs,
        "effect": {name: found.value for name, found in event.effect.items()},
        "worst": event.groups.worst_accuracy,
        "layers": {
            layer: {
                erased: {"gone": m.gone, "accuracy": m.accuracy, "random": m.random, "random_accuracy": m.random_accuracy}
                for erased, m in found.items()
            }
            for layer, found in event.mediation.items()
        },
        "cosine": {layer: found.cosine for layer, found in event.entanglement.items()},
        "cost": costs(task, model, batches),
    }


def spread(values: list[float | None], percent: bool = True) -> str:
    """Mean ± sd; how many were withheld."""
    known = [v for v in values if v is not None]
    if not known:
        return "withheld"
    scale, digits = (100, 1) if percent else (1, 2)
    sd = statistics.stdev(known) if len(known) > 1 else 0.0
    less = f" ({len(values) - len(known)} withheld)" if len(known) < len(values) else ""
    return f"{scale * statistics.mean(known):.{digits}f} ± {scale * sd:.{digits}f}{less}"


def report(rows: list[dict], task: str = "demo") -> None:
    """Print the tables of a task."""
    rows = [r for r in rows if r.get("task", "demo") == task]
    if not rows:
        return
    names = {"demo": ("grass", "digit"), "coloured": ("colour", "label")}[task]
    print(f"{task}: {len(rows)} nets; effects gone in %, accuracy (mean of the cells) in points, mean ± sd over seeds\n")
    heads = [*(f"{name} gone" for name in names), "accuracy", "random: the same effect", "random: accuracy", "cosine"]
    print(f"| erased | at | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 2) + "|")
    for erased in names:
        for layer in rows[0]["layers"]:
            found = [r["layers"][layer][erased] for r in rows]
            cells = [spread([f["gone"][name] for f in found]) for name in names]
            cells.append(spread([f["accuracy"] for f in found]))
            cells.append(spread([f["random"].get(erased) for f in found]))
            cells.append(spread([f["random_accuracy"] for f in found]))
            cells.append(spread([r["cosine"][layer] for r in rows], percent=False))
            print(f"| {erased} | {layer} | {' | '.join(cells)} |")
    print()
    for name in rows[0]["cost"]:
        values = [r["cost"][name] for r in rows]
        unit = "ms" if name == "bare" else "bare forward passes over the same samples"
        print(f"{name}: {spread([1e3 * v if name == 'bare' else v for v in values], percent=False)} {unit}")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=SEEDS, default="demo")
    parser.add_argument("--seeds", type=int, help="5 on digits on grass, 3 on coloured MNIST")
    parser.add_argument("--quick", action="store_true", help="1 net, 2 epochs; nothing is kept")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.task == "coloured" and mnist_file() is None:
        print("coloured is left out: LIGHTNING_INTERP_DATA is not set, or has no mnist.npz")
        return
    kind = {"demo": Demo, "coloured": Coloured}[arguments.task]
    if arguments.quick:
        report([run(kind(epochs=2), 0)], arguments.task)
        return
    task = kind()
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for seed in range(arguments.seeds or SEEDS[task.name]):
        if any((r.get("task", "demo"), r["seed"], r["epochs"]) == (task.name, seed, task.epochs) for r in rows):
            continue
        rows.append(run(task, seed))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    report(rows, task.name)


if __name__ == "__main__":
    main()
