"""Does it take the confounder out? Digits on grass, trained with each penalty, measured on the held-out test digits.

Nothing is selected: every weight that was tried has its row. "do(grass)" is the true effect on the margin, in logits; "share"
the debiased share of the output's variance; "sd" the standard deviation of the margin over that of the ceiling, the same net
trained without the correlation: a penalty must not win by shrinking the output.

    python benchmarks/suppression.py              # 5 seeds
    python benchmarks/suppression.py --seeds 1    # a first look
    python benchmarks/suppression.py --agreement 0.99

One JSON line per run in results/suppression.jsonl; what is there already is not run again.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel, swap_background
from lightning_interp.penalties import BalancedReweighting, ContributionPenalty, GroupDRO, InvariancePenalty, Penalty

RESULTS = Path(__file__).parent / "results" / "suppression.jsonl"
DIGIT, GRASS = interp.Concept("digit"), interp.Confounder("grass", intervention=swap_background)
KEYS = {"output": "head", "target": "label", "inputs": "image"}
EPOCHS = 15

# name: (penalty, weight, balanced task loss, batch size)
METHODS: dict[str, tuple[Callable[[], Penalty] | None, float, bool, int]] = {
    "plain": (None, 0.0, False, 128),
    "BalancedReweighting": (BalancedReweighting, 1.0, False, 128),
    "GroupDRO": (GroupDRO, 1.0, False, 128),
    "ContributionPenalty alone, 1": (ContributionPenalty, 1.0, False, 128),
    "ContributionPenalty, 0.3": (ContributionPenalty, 0.3, True, 128),
    "ContributionPenalty, 1": (ContributionPenalty, 1.0, True, 128),
    "ContributionPenalty, 3": (ContributionPenalty, 3.0, True, 128),
    "ContributionPenalty, 10": (ContributionPenalty, 10.0, True, 128),
    "ContributionPenalty, 1, batch 256": (ContributionPenalty, 1.0, True, 256),
    "ContributionPenalty, 1, batch 64": (ContributionPenalty, 1.0, True, 64),
    "ContributionPenalty, 1, batch 32": (ContributionPenalty, 1.0, True, 32),
    "InvariancePenalty, 0.1": (InvariancePenalty, 0.1, False, 128),
    "InvariancePenalty, 1": (InvariancePenalty, 1.0, False, 128),
    "ceiling (no correlation)": (None, 0.0, False, 128),
}


def run(name: str, seed: int, agreement: float) -> dict:
    """Train once, measure on the test digits."""
    make, weight, balance, batch_size = METHODS[name]
    L.seed_everything(seed, verbose=False)
    model = GrassyDigitsModel()
    callbacks = []
    if make is not None:
        callbacks.append(
            interp.SuppressConfounder(
                GRASS, [DIGIT], penalty=make(), weight=weight, balance=balance, start_epoch=0, ramp_epochs=1, **KEYS
            )
        )
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    start = time.process_time()
    correlated = 0.5 if name.startswith("ceiling") else agreement
    trainer.fit(model, datamodule=GrassyDigitsData(agreement=correlated, batch_size=batch_size, seed=seed))
    seconds = time.process_time() - start
    row = {"method": name, "seed": seed, "agreement": agreement, "epochs": EPOCHS, "seconds": seconds}
    for part, loader in (("val", "val_dataloader"), ("test", "test_dataloader")):
        row |= {f"{part}_{k}": v for k, v in measured(model, getattr(GrassyDigitsData(seed=seed), loader)()).items()}
    if callbacks:
        row["skipped"] = callbacks[0].suppression.skipped
    return row


def measured(model: torch.nn.Module, loader: torch.utils.data.DataLoader) -> dict[str, float]:
    """Accuracy, worst group, do(grass), share, and the margin's standard deviation."""
    measures = ["contribution", "groups", "intervention"]
    event = interp.explain(model, loader, [DIGIT, GRASS], measures=measures, cluster="source", **KEYS)
    groups = event.groups
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch["image"]) for batch in loader])
    return {
        "accuracy": sum(a * groups.count[cell] for cell, a in groups.accuracy.items()) / event.n,
        "worst": groups.worst_accuracy,
        "do": event.intervention["grass"].value,
        "share": event.contribution["grass"].debiased,
        "sd": float((logits[:, 1] - logits[:, 0]).std()),
    }


def report(rows: list[dict], agreement: float) -> None:
    """Mean ± sd over seeds, on the test digits."""
    rows = [r for r in rows if r["agreement"] == agreement]
    ceiling = {r["seed"]: r["test_sd"] for r in rows if r["method"].startswith("ceiling")}
    print(f"agreement {agreement:g}, {EPOCHS} epochs, {len({r['seed'] for r in rows})} seeds, test digits, mean ± sd")
    print("| method, weight | accuracy | worst group | do(grass) | share of grass | sd |")
    print("|---|---|---|---|---|---|")
    for name in METHODS:
        mine = [r for r in rows if r["method"] == name]
        if not mine:
            continue
        cells = [spread([r[f"test_{k}"] for r in mine], digits) for k, digits in (("accuracy", 3), ("worst", 3), ("do", 2))]
        cells.append(spread([r["test_share"] for r in mine], 3))
        cells.append(spread([r["test_sd"] / ceiling[r["seed"]] for r in mine if r["seed"] in ceiling], 2))
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float], digits: int) -> str:
    """Mean ± sd."""
    if not values:
        return "–"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--agreement", type=float, default=0.95)
    parser.add_argument("--fresh", action="store_true", help="run again what is there already")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    if args.fresh:
        RESULTS.unlink(missing_ok=True)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(r["method"], r["seed"], r["agreement"]) for r in rows}
    for seed in range(args.seeds):
        for name in METHODS:
            if (name, seed, args.agreement) not in done:
                rows.append(run(name, seed, args.agreement))
                with RESULTS.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    report(rows, args.agreement)


if __name__ == "__main__":
    main()
