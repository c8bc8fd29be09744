"""Digits on grass: train a small network, see that it looks at the grass; train it again with the grass suppressed.

python examples/grassy_digits.py --epochs 15 --seed 0 --log-dir runs
"""

import argparse

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

import lightning_interp as interp
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel

VARIABLES = [
    interp.Concept("digit", label="digit"),  # is the digit 5 or more: what the network is asked
    interp.Confounder("grass", label="grass", intervention="lightning_interp.demo:swap_background"),
]
# four pictures of each held-out digit are not four independent samples: they share a source
PLACES = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}


class PrintEquation(L.Callback):
    """Prints every event of a monitor below the progress bar."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.print(f"\n{self.monitor.latest}")


def train(name, args, *more):
    """Train once, and measure on the test digits, with the background exchanged as the check."""
    L.seed_everything(args.seed, verbose=False)
    model, data = GrassyDigitsModel(), GrassyDigitsData(agreement=args.agreement, seed=args.seed)
    monitor = interp.ConceptMonitor(VARIABLES, layers=["encoder.conv*"], **PLACES)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        callbacks=[monitor, PrintEquation(monitor), *more],
        logger=TensorBoardLogger(args.log_dir, name=f"grassy_digits/{name}"),
        log_every_n_steps=1,
    )
    trainer.fit(model, datamodule=data)
    measures = ["contribution", "groups", "intervention", "sensitivity"]
    now = {"step": trainer.global_step, "epoch": trainer.current_epoch - 1}
    return interp.explain(model, data.test_dataloader(), VARIABLES, ["encoder.conv*"], measures=measures, **PLACES, **now)


def table(events):
    """Accuracy of every group, effect and share of the grass, one column per run."""
    columns = [
        {**{f"accuracy {k}": v for k, v in e.groups.accuracy.items()}, "worst group": e.groups.worst_accuracy,
         "do(grass), logits": e.intervention["grass"].value, "effect of grass, logits": e.magnitude["grass"],
         "share of grass": e.contribution["grass"].value} for e in events.values()
    ]  # fmt: skip
    rows = [f"  {'test digits':<26}" + "".join(f"{name:>12}" for name in events)]
    rows += [f"  {key:<26}" + "".join(f"{c[key]:>12.3f}" for c in columns) for key in columns[0]]
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--agreement", type=float, default=0.95, help="how often grass goes with the label in training")
    parser.add_argument("--log-dir", default="runs")
    args = parser.parse_args()

    suppress = interp.SuppressConfounder("grass", given=["digit"], budget=0.02)
    events = {"plain": train("plain", args), "suppressed": train("suppressed", args, suppress)}
    for name, event in events.items():
        print(f"\n{name}, on the test digits:\n{event}")
    print(f"\n{table(events)}\n\nSee how it came about:\n  tensorboard --logdir {args.log_dir}")


if __name__ == "__main__":
    main()
