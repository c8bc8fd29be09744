"""What is tried against a shortcut: every method with its main knob and the four values that are tried of it."""

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from torch import nn

import lightning_interp as interp
from lightning_interp import penalties
from shortcuts.irm import InvariantRisk
from shortcuts.tasks import Task, loader

Build = Callable[[Task, float], list[L.Callback]]
KEYS = {"output": "head", "target": "label", "inputs": "image"}
BATCH = 128
DECAYS = (0.0, 0.1, 1.0, 3.0)


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: of the method.
        knob: what is tuned.
        values: its four values.
        callbacks: of the Trainer, for a value.
        net: the net, for a value.
        ceiling: whether training has no shortcut.
        tasks: names of the tasks that it can be used on; empty: all.
        batch_size: samples.
        rounds: times the task's epochs, so that large batches are as many steps.
    """

    name: str
    knob: str
    values: tuple[float, ...]
    callbacks: Build = lambda task, value: []
    net: Callable[[Task, float], L.LightningModule] = lambda task, value: task.net()
    ceiling: bool = False
    tasks: tuple[str, ...] = ()
    batch_size: int = BATCH
    rounds: int = 1


def decayed(task: Task, value: float) -> L.LightningModule:
    """The net with weight decay."""
    return task.net(weight_decay=value)


def suppress(task: Task, penalty: penalties.Penalty, **arguments: object) -> L.Callback:
    """A penalty that acts from the first epoch on and has its full weight after it."""
    return interp.SuppressConfounder(
        task.confounder, task.given, penalty=penalty, start_epoch=0, ramp_epochs=1, **KEYS, **arguments
    )


def contribution(task: Task, value: float) -> list[L.Callback]:
    """The term and the balanced task loss."""
    return [suppress(task, penalties.ContributionPenalty(), weight=value)]


def erased(task: Task, value: float) -> list[L.Callback]:
    """LEACE in the forward pass, refitted every so many steps."""
    return [interp.EraseConfounder(task.confounder, layer=task.layer, given=task.given, every_n_steps=int(value))]


def budgeted(task: Task, value: float) -> list[L.Callback]:
    """The share of the confounder held at a budget, as a monitor sees it on the validation part (of the tuning seed)."""
    probe = loader(task.fields("val", 0), 512)
    monitor = interp.ConceptMonitor([*task.given, task.confounder], data=probe, cluster=task.cluster, warn_above=1.0, **KEYS)
    return [monitor, suppress(task, penalties.ContributionPenalty(), budget=value)]


def invariant_risk(task: Task, value: float) -> L.LightningModule:
    """IRM with the penalty's weight after a fifth of the steps."""
    steps = task.epochs * -(-2 * int(task.setting) // BATCH)
    return InvariantRisk(nn.Identity(), 14 * 14 * 2, 2, weight=value, anneal=steps // 5)


METHODS = {
    m.name: m
    for m in (
        Method("plain", "weight decay", DECAYS, net=decayed),
        Method(
            "BalancedReweighting",
            "weight decay",
            DECAYS,
            lambda task, value: [suppress(task, penalties.BalancedReweighting())],
            decayed,
        ),
        Method(
            "GroupDRO",
            "η",
            (0.01, 0.03, 0.1, 0.3),
            lambda task, value: [suppress(task, penalties.GroupDRO(step_size=value))],
        ),
        Method("ContributionPenalty", "λ", (0.3, 1.0, 3.0, 10.0), contribution),
        Method("ContributionPenalty, budget", "share", (0.005, 0.01, 0.02, 0.05), budgeted),
        Method(
            "IndependencePenalty, correlation",
            "λ",
            (0.1, 1.0, 10.0, 100.0),
            lambda task, value: [
                suppress(task, penalties.IndependencePenalty(measure="correlation"), weight=value, layer=task.layer)
            ],
        ),
        Method(
            "IndependencePenalty, HSIC",
            "λ",
            (0.1, 1.0, 10.0, 100.0),
            lambda task, value: [suppress(task, penalties.IndependencePenalty(measure="hsic"), weight=value, layer=task.layer)],
        ),
        Method(
            "GradientPenalty",
            "λ",
            (0.1, 1.0, 10.0, 100.0),
            lambda task, value: [suppress(task, penalties.GradientPenalty(), weight=value, layer=task.layer)],
        ),
        Method("EraseConfounder", "refit every", (1, 5, 20, 80), erased),
        Method(
            "ContributionPenalty + EraseConfounder",
            "λ",
            (0.3, 1.0, 3.0, 10.0),
            lambda task, value: contribution(task, value) + erased(task, 5),
        ),
        Method(
            "InvariancePenalty",
            "λ",
            (0.03, 0.1, 0.3, 1.0),
            lambda task, value: [suppress(task, penalties.InvariancePenalty(), weight=value, balance=False)],
        ),
        Method(
            "IRM, by hand",
            "λ",
            (1e1, 1e2, 1e3, 1e4),
            net=invariant_risk,
            tasks=("coloured",),
            batch_size=8 * BATCH,
            rounds=8,
        ),
        Method("ceiling", "weight decay", DECAYS, net=lambda t, value: t.net(value, ceiling=True), ceiling=True),
    )
}
# The penalty whose weight and batch size must not matter much: how much do they?
SPREAD = [("ContributionPenalty", weight, BATCH) for weight in (0.3, 1.0, 3.0, 10.0)]
SPREAD += [("ContributionPenalty", 1.0, size) for size in (32, 64, 256)]
