"""Digits on grass: train a small network, and watch in TensorBoard that it looks at the grass.

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


class PrintEquation(L.Callback):
    """Prints every event of a monitor below the progress bar."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.print(f"\n{self.monitor.latest}")


def table(groups):
    """Accuracy of every group, the worst marked."""
    rows = [f"  {'group':<20} {'images':>6} {'accuracy':>8}"]
    for cell, accuracy in groups.accuracy.items():
        mark = "  <- worst" if cell == groups.worst else ""
        rows.append(f"  {cell:<20} {groups.count[cell]:>6} {accuracy:>8.3f}{mark}")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--agreement", type=float, default=0.95, help="how often grass goes with the label in training")
    parser.add_argument("--log-dir", default="runs")
    args = parser.parse_args()

    L.seed_everything(args.seed, verbose=False)
    model, data = GrassyDigitsModel(), GrassyDigitsData(agreement=args.agreement, seed=args.seed)
    monitor = interp.ConceptMonitor(
        variables=VARIABLES,
        layers=["encoder.conv*"],
        output="head",
        target="label",
        inputs="image",
        cluster="source",  # four pictures of each held-out digit: not four independent samples
    )
    trainer = L.Trainer(
        max_epochs=args.epochs,
        callbacks=[monitor, PrintEquation(monitor)],
        logger=TensorBoardLogger(args.log_dir, name="grassy_digits"),
        log_every_n_steps=1,
    )
    trainer.fit(model, datamodule=data)

    measures = ["contribution", "groups", "intervention", "sensitivity"]
    keys = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}
    now = {"step": trainer.global_step, "epoch": trainer.current_epoch - 1}
    final = interp.explain(model, data.test_dataloader(), VARIABLES, ["encoder.conv*"], measures=measures, **keys, **now)
    print(f"\nOn the test digits, with the background exchanged as the check:\n{final}\n\n{table(final.groups)}")
    print(f"\nSee how it came about:\n  tensorboard --logdir {args.log_dir}")


if __name__ == "__main__":
    main()
