"""Is the estimated effect the true one? Checked against do(grass) on many checkpoints of differently trained nets.

For each checkpoint, on the held-out digits × 4 crops: the estimated effect of grass with its interval, and the true effect, the
same images on the other photograph (paired). Shares are checked against the full factorial: every image on both backgrounds.
Two probe sets: balanced, and one in which grass and label agree 90 % of the time. Intervals are clustered by digit.

    python benchmarks/fidelity.py            # 4 nets × 12 epochs, about 4 minutes on one core
    python benchmarks/fidelity.py --quick    # 2 nets × 4 epochs

One JSON line per checkpoint in results/fidelity.jsonl; a net that is there already is not trained again.
"""

import argparse
import json
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

import lightning_interp as interp
from lightning_interp.demo import GrassyDigits, GrassyDigitsData, GrassyDigitsModel, swap_background

RESULTS = Path(__file__).parent / "results" / "fidelity.jsonl"
NETS = [{"agreement": a, "seed": s} for a, s in ((0.95, 0), (0.8, 1), (0.5, 2), (0.99, 3))]
VARIABLES = [interp.Concept("digit"), interp.Confounder("grass", intervention=swap_background)]
KEYS = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}


def factorial(data: GrassyDigits) -> list[dict[str, torch.Tensor]]:
    """Every image on both backgrounds."""
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    return [batch, swap_background(batch)]


def measure(model: torch.nn.Module, data: GrassyDigits) -> dict[str, float]:
    """The estimate, its interval, and the truth, on one probe set."""
    loader = DataLoader(data, batch_size=512)
    event = interp.explain(model, loader, VARIABLES, measures=["contribution", "intervention"], **KEYS)
    truth = interp.explain(model, factorial(data), VARIABLES, measures=["contribution"], weights="balanced", **KEYS)
    effect, do = event.effect["grass"], event.intervention["grass"]
    row = {"estimate": effect.value, "low": effect.low, "high": effect.high, "do": do.value, "weights": event.weights}
    row["do_factorial"] = truth.effect["grass"].value
    for name in ("digit", "grass", "unexplained"):
        row[f"share_{name}"] = event.contribution[name].value
        row[f"factorial_{name}"] = truth.contribution[name].value
    return row


class Checkpoints(L.Callback):
    """Measures after every epoch and appends the rows."""

    def __init__(self, net: dict[str, float], rows: list[dict]) -> None:
        self.net, self.rows = net, rows
        self.probes = {
            "balanced": GrassyDigits("test", agreement=0.5, crops=4, seed=7),
            "agreement 0.9": GrassyDigits("test", agreement=0.9, crops=4, seed=7),
        }

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, probe in self.probes.items():
            self.rows.append({**self.net, "epoch": trainer.current_epoch, "probe": name, **measure(pl_module, probe)})


def train(net: dict[str, float], epochs: int) -> list[dict]:
    """One net's rows."""
    L.seed_everything(net["seed"], verbose=False)
    rows: list[dict] = []
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[Checkpoints(net, rows)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(GrassyDigitsModel(), datamodule=GrassyDigitsData(agreement=net["agreement"], seed=int(net["seed"])))
    return rows


def report(rows: list[dict]) -> None:
    """The table."""
    print(f"{len({(r['agreement'], r['seed'], r['epoch']) for r in rows})} checkpoints of "
          f"{len({(r['agreement'], r['seed']) for r in rows})} nets")  # fmt: skip
    print("| probe set | correlation | mean abs. error | of largest effect | inside 95 % interval | largest share error |")
    print("|---|---|---|---|---|---|")
    for probe in dict.fromkeys(r["probe"] for r in rows):
        mine = [r for r in rows if r["probe"] == probe]
        estimate, do = (np.array([r[k] for r in mine]) for k in ("estimate", "do"))
        inside = np.mean([r["low"] <= r["do"] <= r["high"] for r in mine])
        error = np.abs(estimate - do).mean()
        names = ("digit", "grass", "unexplained")
        share = max(abs(r[f"share_{n}"] - r[f"factorial_{n}"]) for r in mine for n in names)
        print(
            f"| {probe} | {np.corrcoef(estimate, do)[0, 1]:.4f} | {error:.3f} logits | {error / np.abs(do).max():.2%} "
            f"| {inside:.1%} | {share:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    path = RESULTS.with_stem("fidelity_quick") if args.quick else RESULTS
    path.parent.mkdir(exist_ok=True)
    if args.fresh:
        path.unlink(missing_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    nets, epochs = (NETS[:2], 4) if args.quick else (NETS, 12)
    for net in nets:
        if any(r["agreement"] == net["agreement"] and r["seed"] == net["seed"] for r in done):
            continue
        rows = train(net, epochs)
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        done += rows
    report(done)


if __name__ == "__main__":
    main()
