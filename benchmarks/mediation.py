"""What erasing a variable at a layer does to the demo's net: the preview of an edit, and what it costs.

A plain net is trained on the confounded digits; on the held-out ones (349 digits × 4 crops, each on both backgrounds equally
often) every variable is erased at every convolution and at the layer that feeds the head, and the equation is fitted again. The
random subspace is the mean of 3 draws. Times are CPU time on one core, over that of one bare forward pass over the same
samples: of the measure, and of the same measure with every pass run from the input.

    python benchmarks/mediation.py            # 5 nets × 15 epochs, about 7 minutes on one core
    python benchmarks/mediation.py --quick    # 1 net × 2 epochs; nothing is kept

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
from torch import nn
from torch.utils.data import DataLoader

import lightning_interp as interp
from lightning_interp.demo import GrassyDigits, GrassyDigitsData, GrassyDigitsModel
from lightning_interp.passes.above import Above

RESULTS = Path(__file__).parent / "results" / "mediation.jsonl"
VARIABLES = [interp.Concept("digit"), interp.Confounder("grass")]
LAYERS = ["encoder.conv*", "encoder.flatten"]
KEYS = {"layers": LAYERS, "output": "head", "target": "label", "inputs": "image", "cluster": "source"}
EPOCHS, SEEDS, REPEATS = 15, 5, 3


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the median of a few."""
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return statistics.median(took)


def explained(model: nn.Module, batches: list, *measures: str) -> interp.Event:
    """One event."""
    return interp.explain(model, batches, VARIABLES, measures=["contribution", *measures], **KEYS)


@torch.no_grad()
def forward(model: nn.Module, batches: list) -> None:
    """A bare pass."""
    for batch in batches:
        model(batch["image"])


def costs(model: nn.Module, batches: list) -> dict[str, float]:
    """Seconds of a bare pass, and of the measures in units of it."""
    bare = seconds(lambda: forward(model, batches))
    event = seconds(lambda: explained(model, batches))
    above = seconds(lambda: explained(model, batches, "mediation"))
    with patch.object(Above, "_known", lambda self, name: {}):
        whole = seconds(lambda: explained(model, batches, "mediation"))
    entangled = seconds(lambda: explained(model, batches, "entanglement"))
    over = {"mediation": above, "mediation from the input": whole, "entanglement": entangled}
    return {"bare": bare, **{name: (t - event) / bare for name, t in over.items()}}


def run(seed: int, epochs: int) -> dict:
    """Train, erase, measure."""
    L.seed_everything(seed, verbose=False)
    model = GrassyDigitsModel()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=GrassyDigitsData(seed=seed))
    model.eval()
    batches = list(DataLoader(GrassyDigits("test", 0.5, 4, seed), batch_size=128))
    event = explained(model, batches, "mediation", "entanglement", "groups")
    print(event)
    return {
        "seed": seed,
        "epochs": epochs,
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
        "cost": costs(model, batches),
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


def report(rows: list[dict]) -> None:
    """Print the tables."""
    print(f"{len(rows)} nets; effects gone in %, accuracy (mean of the cells) in points, mean ± sd over seeds\n")
    print("| erased | at | grass gone | digit gone | accuracy | random: the same effect | random: accuracy | cosine |")
    print("|---|---|---|---|---|---|---|---|")
    for erased in ("grass", "digit"):
        for layer in rows[0]["layers"]:
            found = [r["layers"][layer][erased] for r in rows]
            cells = [spread([f["gone"][name] for f in found]) for name in ("grass", "digit")]
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
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="1 net, 2 epochs; nothing is kept")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.quick:
        report([run(0, 2)])
        return
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for seed in range(arguments.seeds):
        if any((r["seed"], r["epochs"]) == (seed, EPOCHS) for r in rows):
            continue
        rows.append(run(seed, EPOCHS))
        with RESULTS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
