"""The nets: differently built, trained and stopped, so that what they make of the confounder differs widely."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import lightning as L
from shortcuts.runs import quiet_trainer
from shortcuts.tasks import loader

import lightning_interp as interp
from lightning_interp import penalties
from measures.data import Fields, coloured_digits, digits_on_grass
from measures.nets import ARCHITECTURES, Staged

KEYS = {"output": "head", "target": "label", "inputs": "image"}
LABEL, CONFOUNDER = interp.Concept("label", kind="binary"), interp.Confounder("confounder", kind="binary")
PENALTIES = {
    "reweighted": (penalties.BalancedReweighting(), {}),
    "penalty 0.1": (penalties.ContributionPenalty(), {"weight": 0.1}),
    "penalty 1": (penalties.ContributionPenalty(), {"weight": 1.0}),
}
SUPPRESSED = ("reweighted", "penalty 0.1", "penalty 1", "decay", "edited")
STOPS = {"demo": (3, 6, 12), "coloured": (1, 3, 8), "hidden": (1, 3, 8)}  # epochs
BUILDS = {"demo": ("cnn", "strided"), "coloured": ("mlp", "cnn"), "hidden": ("mlp", "cnn")}  # an MLP learns no texture here
SHAPES = {"demo": (1, 32), "coloured": (2, 14), "hidden": (2, 14)}  # channels, side
DECAY = 3.0
EDITED = {"mlp": ("middle", "last")}  # a stage of convolutions that is pooled cannot be erased in the weights


@dataclass(frozen=True)
class Net:
    """A net and how it is trained.

    Attributes:
        task: "demo", "coloured" or "hidden" (coloured, with a patch that nobody names).
        architecture: "mlp", "cnn" or "strided".
        agreement: of the confounder with the label in training.
        hidden: of the patch with the label in training.
        training: "plain", "decay", one of `PENALTIES`, or "edited": plain, then cut out of the weights.
    """

    task: str
    architecture: str
    agreement: float
    hidden: float | None = None
    training: str = "plain"


AGREEMENTS = (0.99, 0.9, 0.8, 0.65, 0.5, 0.2)
BOTH = ((0.95, 0.5), (0.5, 0.95), (0.8, 0.8), (0.9, 0.7), (0.7, 0.9), (0.5, 0.5), (0.95, 0.95), (0.2, 0.8), (0.8, 0.2))


def nets(task: str) -> list[Net]:
    """All nets of a task."""
    builds = BUILDS[task]
    if task == "hidden":
        found = [Net(task, a, c, h) for a in builds for c, h in BOTH]
        return found + [Net(task, a, 0.9, 0.9, t) for a in builds for t in ("reweighted", "penalty 1")]
    found = [Net(task, a, c) for a in builds for c in AGREEMENTS]
    return found + [Net(task, a, 0.9, training=t) for a in builds for t in SUPPRESSED]


def training_set(net: Net, seed: int) -> Fields:
    """What a net is trained on."""
    if net.task == "demo":
        return digits_on_grass("train", net.agreement, seed)
    return coloured_digits("train", net.agreement, seed, net.hidden)


class Stops(L.Callback):
    """Keeps copies of the net after some epochs."""

    def __init__(self, epochs: tuple[int, ...]) -> None:
        self.epochs, self.kept = epochs, {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep one, if it is due."""
        if trainer.current_epoch + 1 in self.epochs:
            self.kept[str(trainer.current_epoch + 1)] = deepcopy(pl_module.state_dict())


def checkpoints(net: Net, seed: int, stops: tuple[int, ...]) -> Iterator[tuple[str, Staged]]:
    """Train a net; its copies, each named by the epochs that it was trained for, or by the stage where it was edited."""
    L.seed_everything(seed, verbose=False)
    build = ARCHITECTURES[net.architecture]
    model = build(*SHAPES[net.task], DECAY if net.training == "decay" else 0.0)
    fields = training_set(net, seed)
    callbacks: list[L.Callback] = [kept := Stops(stops)]
    if net.training in PENALTIES:
        penalty, how = PENALTIES[net.training]
        callbacks.append(
            interp.SuppressConfounder(CONFOUNDER, [LABEL], penalty=penalty, start_epoch=0, ramp_epochs=1, **how, **KEYS)
        )
    quiet_trainer(max(stops), callbacks).fit(model, loader(fields, 128, shuffle=True))
    model.eval()
    if net.training == "edited":
        state = deepcopy(model.state_dict())
        for depth in EDITED.get(net.architecture, ("last",)):
            model.load_state_dict(state)
            other = loader(training_set(net, seed + 1), 512)
            interp.edit(model, f"encoder.{depth}", CONFOUNDER, other, given=[LABEL], **KEYS)
            yield f"edited, {depth}", model
        return
    for name, state in kept.kept.items():
        model.load_state_dict(state)
        yield name, model
