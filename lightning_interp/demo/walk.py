"""The walk through the demo: train a network, see that it looks at the grass; train it again with the grass suppressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

import lightning_interp as interp
from lightning_interp.demo.digits import GrassyDigitsData
from lightning_interp.demo.network import GrassyDigitsModel

VARIABLES = [
    interp.Concept("digit", label="digit"),  # is the digit 5 or more: what the network is asked
    interp.Confounder("grass", label="grass", intervention="lightning_interp.demo:swap_background"),
]
# four pictures of each held-out digit are not four independent samples: they share a source
PLACES: dict[str, Any] = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}


class Settings(NamedTuple):
    """What both runs have in common, see `walk`."""

    epochs: int
    seed: int
    agreement: float
    log_dir: str


class PrintEquation(L.Callback):
    """Prints every event of a monitor below the progress bar."""

    def __init__(self, monitor: interp.ConceptMonitor) -> None:
        self.monitor = monitor

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the event of this validation run."""
        if not trainer.sanity_checking:
            pl_module.print(f"\n{self.monitor.latest}")


def train(name: str, settings: Settings, *more: L.Callback) -> interp.Event:
    """Train once, and measure on the test digits, with the background exchanged as the check."""
    L.seed_everything(settings.seed, verbose=False)
    model, data = GrassyDigitsModel(), GrassyDigitsData(agreement=settings.agreement, seed=settings.seed)
    monitor = interp.ConceptMonitor(VARIABLES, layers=["encoder.conv*"], **PLACES)
    trainer = L.Trainer(
        max_epochs=settings.epochs,
        callbacks=[monitor, PrintEquation(monitor), *more],
        logger=TensorBoardLogger(settings.log_dir, name=f"grassy_digits/{name}"),
        log_every_n_steps=1,
    )
    trainer.fit(model, datamodule=data)
    return interp.explain(
        model,
        data.test_dataloader(),
        VARIABLES,
        ["encoder.conv*"],
        measures=["contribution", "groups", "intervention", "sensitivity"],
        step=trainer.global_step,
        epoch=trainer.current_epoch - 1,
        **PLACES,
    )


def column(event: interp.Event) -> dict[str, float | None]:
    """Accuracy of every group, effect and share of the grass."""
    found = {(r["measure"], r["variable"], r["by"]): r["value"] for r in event.records() if r["layer"] is None}
    return {
        **{f"accuracy {cell}": v for (measure, _, cell), v in found.items() if measure == "group" and cell},
        "worst group": found["group", "worst_accuracy", None],
        "do(grass), logits": found["intervention", "grass", None],
        "effect of grass, logits": found["effect", "grass", None],
        "share of grass": found["contribution", "grass", None],
    }


def table(events: Mapping[str, interp.Event]) -> str:
    """`column` of every run, side by side."""
    columns = [column(event) for event in events.values()]
    rows = [f"  {'test digits':<26}" + "".join(f"{name:>12}" for name in events)]
    rows += [f"  {key:<26}" + "".join(f"{c[key]:>12.3f}" for c in columns) for key in columns[0]]
    return "\n".join(rows)


def walk(epochs: int = 15, seed: int = 0, agreement: float = 0.95, log_dir: str = "runs") -> None:
    """Run both; print both equations, the table, and the line that opens TensorBoard.

    Args:
        epochs: of each run.
        seed: of weights, crops and batches.
        agreement: how often grass goes with the label in training, 0 to 1.
        log_dir: for TensorBoard.
    """
    settings = Settings(epochs, seed, agreement, log_dir)
    suppress = interp.SuppressConfounder("grass", given=["digit"], budget=0.02)
    events = {"plain": train("plain", settings), "suppressed": train("suppressed", settings, suppress)}
    for name, event in events.items():
        print(f"\n{name}, on the test digits:\n{event}")
    print(f"\n{table(events)}\n\nSee how it came about:\n  tensorboard --logdir {log_dir}")
