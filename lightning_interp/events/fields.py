"""What an event holds: plain numbers, with no way of showing them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_interp.results import ByLevel, Entanglement, Groups, Mediation, Score, Sensitivity, Share


@dataclass(frozen=True)
class EventFields:
    """The numbers of one measurement of everything.

    Attributes:
        step: optimizer steps done.
        epoch: epoch, zero-based.
        n: samples measured.
        weights: "balanced" or "natural", as used.
        mode: "val", "train", or "probe" for a loader of its own.
        task: "binary", "multiclass", "multilabel" or "regression".
        intercept: the equation's constant, where there is one output.
        contribution: {variable, "interactions" or "unexplained": Share}.
        effect: {variable: Effect, or {class or level: Effect}}.
        magnitude: {variable: the effect as one number}: signed for one output, √(2Σβ²) over classes, 2·sd over levels.
        decodability: {layer: {variable: Score}}.
        sensitivity: {layer: {variable: Sensitivity, or {class or level: Sensitivity}}}.
        intervention: {variable: Effect}: E[f(do(z=1)) − f(do(z=0))].
        intervention_gap: {variable: estimated effect minus the interventional one}.
        mediation: {layer: {erased variable: Mediation}}.
        entanglement: {layer: Entanglement}.
        groups: accuracy of the cells, None without a target.
        coding: {variable: {"kind", "levels", "values", "center", "scale"}} as decided from the probe set: levels as they are
            printed, and their raw values.
        probe: a hash of the samples measured, their ids and their variables' values, in any order; None where unknown.
        confounders: names of the variables that should not matter.
        skipped: batches that were left out.
        cost_seconds: time the event took.
        notes: what was withheld or decided, and why.
    """

    step: int
    epoch: int
    n: int
    weights: str
    mode: str
    task: str
    intercept: float | None = None
    contribution: dict[str, Share] = field(default_factory=dict)
    effect: dict[str, ByLevel] = field(default_factory=dict)
    magnitude: dict[str, float] = field(default_factory=dict)
    decodability: dict[str, dict[str, Score]] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, dict[str, Sensitivity]]] = field(default_factory=dict)
    intervention: dict[str, ByLevel] = field(default_factory=dict)
    intervention_gap: dict[str, float] = field(default_factory=dict)
    mediation: dict[str, dict[str, Mediation]] = field(default_factory=dict)
    entanglement: dict[str, Entanglement] = field(default_factory=dict)
    groups: Groups | None = None
    coding: dict[str, dict[str, Any]] = field(default_factory=dict)
    probe: str | None = None
    confounders: tuple[str, ...] = ()
    skipped: int = 0
    cost_seconds: float = 0.0
    notes: tuple[str, ...] = ()
