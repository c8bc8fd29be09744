"""What is tried against a shortcut: every method with its main knob and the four values that are tried of it."""

from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
from concept_erasure import LeaceFitter
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_interp as interp
from lightning_interp import penalties
from shortcuts import clarc, dfr
from shortcuts.irm import InvariantRisk
from shortcuts.tasks import Task, loader

Build = Callable[[Task, float], list[L.Callback]]
After = Callable[[Task, nn.Module, float, int], None]
KEYS = {"output": "head", "target": "label", "inputs": "image"}
BATCH = 128
IRM_BATCH, IRM_ROUNDS = 10_000, 25  # all images of coloured MNIST, and 250 steps: by small batches IRM fails
DECAYS = (0.0, 1.0, 3.0, 10.0)
BUILT, REAL = ("demo", "coloured", "decoy"), ("caltech", "heart", "adult", "reviews")
TWO_CLASSES = ("demo", "coloured", *REAL)


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
        rounds: times the task's epochs, for large batches.
        validates: whether the validation part runs after every epoch.
        after: what is done to the trained net, with the seed.
        errors: how often the errors of a first net, trained for a fifth of the epochs, count in training, for a value.
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
    validates: bool = False
    after: After | None = None
    errors: Callable[[float], int] | None = None


def decayed(task: Task, value: float) -> L.LightningModule:
    """The net with weight decay."""
    return task.net(weight_decay=value)


def suppress(
    task: Task, penalty: penalties.Penalty, confounder: interp.Confounder | None = None, **arguments: object
) -> L.Callback:
    """A penalty that acts from the first epoch on and has its full weight after it."""
    return interp.SuppressConfounder(
        confounder or task.confounder, task.given, penalty=penalty, start_epoch=0, ramp_epochs=1, **task.places, **arguments
    )


def contribution(task: Task, value: float) -> list[L.Callback]:
    """The term and the balanced task loss."""
    return [suppress(task, penalties.ContributionPenalty(), weight=value)]


def of_a_number(task: Task, value: float) -> list[L.Callback]:
    """The term of the confounder as a number: its cells are not balanced, and need not be filled."""
    return [suppress(task, penalties.ContributionPenalty(), task.number, weight=value)]


def balanced(task: Task) -> L.Callback:
    """Balanced weights of the task's loss alone."""
    return suppress(task, penalties.BalancedReweighting())


def erased(task: Task, value: float) -> list[L.Callback]:
    """LEACE in the forward pass, refitted to training rows every so many steps, and balanced weights."""
    erase = interp.EraseConfounder(task.confounder, layer=task.layer, given=task.given, every_n_steps=int(value))
    return [erase, balanced(task)]


def erased_late(task: Task, value: float) -> list[L.Callback]:
    """LEACE in the forward pass, fitted to held-out rows in the last epochs, and balanced weights."""
    return [late(task, value), balanced(task)]


def late(task: Task, epochs: float) -> L.Callback:
    """Erases in the last epochs, fitted to the validation part."""
    start, rows = max(0, task.epochs - int(epochs)), min(256, len(task.fields("val", 0)["label"]))
    return interp.EraseConfounder(
        task.confounder, layer=task.layer, given=task.given, start_epoch=start, start_rows=rows, data="val"
    )


def budget_of_a_number(task: Task, value: float) -> list[L.Callback]:
    """The same of the confounder as a number."""
    return budgeted(task, value, task.number)


def budgeted(task: Task, value: float, number: interp.Confounder | None = None) -> list[L.Callback]:
    """The share of the confounder held at a budget, as a monitor sees it on the validation part (of seed 0)."""
    probe = loader(task.fields("val", 0), 512)
    variables = [*task.given, number or task.confounder]
    monitor = interp.ConceptMonitor(variables, data=probe, cluster=task.cluster, summary=False, warn_above=1.0, **task.places)
    return [monitor, suppress(task, penalties.ContributionPenalty(), number, budget=value)]


def invariant_risk(task: Task, value: float) -> L.LightningModule:
    """IRM by full batches, with the penalty's weight after a third of the steps."""
    steps = task.epochs * IRM_ROUNDS * -(-2 * int(task.setting) // IRM_BATCH)
    return InvariantRisk(nn.Identity(), 14 * 14 * 2, 2, weight=value, anneal=steps // 3)


def reweighted_head(task: Task, net: nn.Module, value: float, seed: int) -> None:
    """DFR on the validation part."""
    dfr.retrain(task, net, task.fields("val", seed), seed)


def right_reasons(task: Task, net: nn.Module, value: float, seed: int) -> None:
    """RR-ClArC, for a third of the epochs."""
    clarc.tune(task, net, value, seed, max(1, task.epochs // 3), BATCH)


def leace(task: Task, net: nn.Module, value: float, seed: int) -> None:
    """LEACE of what the head is given, as its authors' package fits it (every row the same), folded into the head."""
    fields = task.fields("val", seed)
    h, z = dfr.features(net, fields[task.inputs]), fields[task.confounder.name]
    z = F.one_hot(z.unique(return_inverse=True)[1]).double()
    found = LeaceFitter.fit(Tensor(h).double(), z).eraser
    weight, bias = net.head.weight.data, net.head.bias.data
    erased = weight.double() @ found.P  # W(P(h − m) + m) + b
    bias += ((weight.double() - erased) @ found.bias).to(bias)
    weight.copy_(erased)


def cut(task: Task, net: nn.Module, value: float, seed: int) -> None:
    """`edit` of what feeds the head."""
    data = loader(task.fields("val", seed), 512)
    interp.edit(net, task.layer, task.confounder, data, task.given, cluster=task.cluster, **task.places)


METHODS = {
    m.name: m
    for m in (
        Method("plain", "weight decay", DECAYS, net=decayed),
        Method(
            "BalancedReweighting",
            "weight decay",
            DECAYS,
            lambda task, value: [balanced(task)],
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
        Method("ContributionPenalty, as a number", "λ", (0.3, 1.0, 3.0, 10.0), of_a_number, tasks=("reviews",)),
        Method(
            "ContributionPenalty, budget, as a number",
            "share",
            (0.005, 0.01, 0.02, 0.05),
            budget_of_a_number,
            tasks=("reviews",),
        ),
        Method(
            "IndependencePenalty, correlation",
            "λ",
            (1.0, 10.0, 30.0, 100.0),
            lambda task, value: [
                suppress(task, penalties.IndependencePenalty(measure="correlation"), weight=value, layer=task.layer)
            ],
        ),
        Method(
            "IndependencePenalty, HSIC",
            "λ",
            (1.0, 3.0, 10.0, 30.0),
            lambda task, value: [suppress(task, penalties.IndependencePenalty(measure="hsic"), weight=value, layer=task.layer)],
        ),
        Method(
            "GradientPenalty",
            "λ",
            (0.1, 1.0, 10.0, 100.0),
            lambda task, value: [suppress(task, penalties.GradientPenalty(), weight=value, layer=task.layer)],
        ),
        Method("EraseConfounder, training rows", "refit every", (1, 5, 20, 80), erased, tasks=BUILT),
        Method("EraseConfounder, held-out rows", "last epochs", (1, 2, 4, 8), erased_late, validates=True),
        Method(
            "budget 0.02 + EraseConfounder, held-out rows",
            "last epochs",
            (1, 2, 4, 8),
            lambda task, value: [late(task, value), *budgeted(task, 0.02)],
            validates=True,
            tasks=BUILT,
        ),
        Method(
            "InvariancePenalty",
            "λ",
            (0.03, 0.1, 0.3, 1.0),
            lambda task, value: [suppress(task, penalties.InvariancePenalty(), weight=value, balance=False)],
            tasks=tuple(name for name in BUILT + REAL if name != "heart"),
        ),
        Method(
            "IRM, by hand",
            "λ",
            (1e2, 1e3, 1e4, 1e5),
            net=invariant_risk,
            tasks=("coloured",),
            batch_size=IRM_BATCH,
            rounds=IRM_ROUNDS,
        ),
        Method("JTT", "weight of errors", (2.0, 5.0, 10.0, 20.0), errors=int),
        Method("DFR", "weight decay", DECAYS, net=decayed, after=reweighted_head, tasks=TWO_CLASSES),
        Method("RR-ClArC", "λ", (0.03, 1.0, 30.0, 1000.0), after=right_reasons),
        Method("LEACE at the end", "weight decay", DECAYS, net=decayed, after=leace),
        Method("edit at the end", "weight decay", DECAYS, net=decayed, after=cut),
        Method("ceiling", "weight decay", DECAYS, net=lambda t, value: t.net(value, ceiling=True), ceiling=True),
    )
}
# The penalty whose weight and batch size must not matter much: how much do they?
SPREAD = [("ContributionPenalty", weight, BATCH) for weight in (0.3, 1.0, 3.0, 10.0)]
SPREAD += [("ContributionPenalty", 1.0, size) for size in (32, 64, 256)]
