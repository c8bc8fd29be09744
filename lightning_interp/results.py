"""The numbers that an event is made of, in plain types."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Share:
    """A share of the output's variance.

    Attributes:
        value: raw share, 0…1; all of an event's raw shares sum to 1.
        debiased: (b² − se²)⁺·Var(z)/Var(o): zero on average for an unused variable; None where withheld.
        low: lower end of the 95 % interval of b²·Var(z)/Var(o), None where withheld.
        high: its upper end.
        note: why something is withheld.
    """

    value: float | None
    debiased: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Effect:
    """A coefficient of the equation, in logits (regression: in the target's unit).

    Attributes:
        value: difference between two levels, deviation of a level from the mean of levels, or change per sd; None if withheld.
        low: lower end of the 95 % interval, None where withheld.
        high: its upper end.
        se: standard error.
        df: degrees of freedom of the interval.
        robustness: partial R² with output and variable that a hidden factor would need to bring the effect to zero, 0…1.
        note: why something is withheld, or "few".
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    df: float | None = None
    robustness: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Score:
    """How well a variable can be read at a layer.

    Attributes:
        value: cross-fitted R² of a ridge probe; may be negative.
        selectivity: R² above that of random control columns.
        accuracy: balanced accuracy, 0…1 (binary and categorical).
        auroc: area under the ROC curve, 0…1, mean over levels (binary and categorical).
        drift: 1 − mean cosine between the variable's direction now and at the last event.
        note: why something is withheld.
    """

    value: float | None
    selectivity: float | None = None
    accuracy: float | None = None
    auroc: float | None = None
    drift: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """How the output answers to a step along a variable's direction at a layer.

    Attributes:
        value: mean derivative, output units per unit of z.
        z: the derivative over its standard error.
        p: p-value, adjusted by Holm over variables, layers and classes.
        tcav: fraction of samples whose derivative is positive, 0…1.
        note: why something is withheld, or how the TCAV score is to be read.
    """

    value: float | None
    z: float | None = None
    p: float | None = None
    tcav: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Groups:
    """Accuracy of the cells.

    Attributes:
        accuracy: {cell: accuracy 0…1}.
        count: {cell: samples}.
        worst: the cell with the lowest accuracy.
        worst_accuracy: its accuracy.
        gap: best minus worst.
    """

    accuracy: dict[str, float]
    count: dict[str, int]
    worst: str
    worst_accuracy: float
    gap: float


@dataclass(frozen=True)
class Mediation:
    """What is left of every effect when one variable is erased at a layer.

    Attributes:
        gone: {variable: fraction of its effect that is gone}: 1 all of it, over 1 reversed, under 0 grown; None where withheld.
        accuracy: change of the mean accuracy of the cells, −1…1; None without a target.
        random: as `gone`, when a random subspace of equal rank is erased instead; mean over draws.
        random_accuracy: as `accuracy`, for the random subspace.
        rank: directions taken out.
        weights: "balanced" or "natural", under which the eraser was fitted.
        withheld: {variable: why its fraction is withheld}.
        note: why everything is withheld, or how the numbers are to be read.
    """

    gone: dict[str, float | None]
    accuracy: float | None = None
    random: dict[str, float | None] = field(default_factory=dict)
    random_accuracy: float | None = None
    rank: int = 0
    weights: str | None = None
    withheld: dict[str, str] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True)
class Entanglement:
    """How far the variables share a layer.

    Attributes:
        cosine: mean absolute cosine between the variables' directions, 0…1; None where withheld.
        pairs: {variable: {another: absolute cosine; of subspaces the mean over principal angles}}, each pair once.
        collateral: {erased: {probed: R² of its probe that is lost}}.
        participation: how many variables a neuron serves, 1…number of variables; mean over neurons by what they carry.
        note: why something is withheld.
    """

    cosine: float | None
    pairs: dict[str, dict[str, float]] = field(default_factory=dict)
    collateral: dict[str, dict[str, float]] = field(default_factory=dict)
    participation: float | None = None
    note: str | None = None


ByLevel = Effect | dict[str, Effect]
