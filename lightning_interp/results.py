"""The numbers that an event is made of, in plain types."""

from __future__ import annotations

from dataclasses import dataclass


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


ByLevel = Effect | dict[str, Effect]
