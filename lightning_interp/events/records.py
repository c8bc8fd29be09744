"""An event as tidy rows, one per number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_interp.events.fields import EventFields
from lightning_interp.results import ByLevel, Effect, Sensitivity

Record = dict[str, Any]


def event_records(e: EventFields) -> Iterator[Record]:
    """The rows of an event, see `to_records`."""
    for part in (
        _share_rows, _effect_rows, _probe_rows, _sensitivity_rows, _mediation_rows, _entanglement_rows, _group_rows,
    ):  # fmt: skip
        for row in part(e):
            yield {"step": e.step, "epoch": e.epoch, **row}


def _row(
    measure: str,
    variable: str | None,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    note: str | None = None,
    layer: str | None = None,
    by: str | None = None,
) -> Record:
    return {
        "measure": measure, "layer": layer, "variable": variable, "by": by,
        "value": value, "low": low, "high": high, "note": note,
    }  # fmt: skip


def _share_rows(e: EventFields) -> Iterator[Record]:
    for name, s in e.contribution.items():
        yield _row("contribution", name, s.value, s.low, s.high, s.note)
        if s.debiased is not None:
            yield _row("contribution", name, s.debiased, note=s.note, by="debiased")


def _effect_rows(e: EventFields) -> Iterator[Record]:
    for name, found in e.effect.items():
        yield from _one_effect("effect", name, found, e.magnitude.get(name))
        if isinstance(found, Effect) and found.robustness is not None:
            yield _row("effect", name, found.robustness, by="robustness")
    for name, found in e.intervention.items():
        yield from _one_effect("intervention", name, found, magnitude_of(found, e.task))
    for name, gap in e.intervention_gap.items():
        yield _row("intervention", name, gap, by="effect − intervention")


def _one_effect(measure: str, name: str, found: ByLevel, size: float | None) -> Iterator[Record]:
    if isinstance(found, Effect):
        yield _row(measure, name, found.value, found.low, found.high, found.note)
        return
    yield _row(measure, name, size)
    for by, one in found.items():
        yield _row(measure, name, one.value, one.low, one.high, one.note, by=by)


def _probe_rows(e: EventFields) -> Iterator[Record]:
    for layer, scores in e.decodability.items():
        for name, s in scores.items():
            yield _row("decodability", name, s.value, note=s.note, layer=layer)
            others = {
                "selectivity": s.selectivity,
                "decodability_accuracy": s.accuracy,
                "decodability_auroc": s.auroc,
                "drift": s.drift,
            }
            for measure, value in others.items():
                if value is not None:
                    yield _row(measure, name, value, layer=layer)


def _sensitivity_rows(e: EventFields) -> Iterator[Record]:
    for layer, variables in e.sensitivity.items():
        for name, found in variables.items():
            single = len(found) == 1
            for by, s in found.items():
                yield _row("sensitivity", name, s.value, note=_test_note(s), layer=layer, by=None if single else by)
                if s.tcav is not None:
                    yield _row("tcav", name, s.tcav, layer=layer, by=None if single else by)
            if not single:
                yield _row("sensitivity", name, _sensitivity_size(e, name, found), layer=layer)


def _sensitivity_size(e: EventFields, name: str, found: Mapping[str, Sensitivity]) -> float | None:
    # As for effects: √(2Σβ²) over centred classes, 2·sd over levels, whose deviations sum to zero.
    values = [s.value for s in found.values() if s.value is not None]
    coding = e.coding.get(name, {})
    levels = 4 / len(coding["levels"]) if coding.get("kind") == "categorical" else 1.0
    return math.sqrt(_class_factor(e.task) * levels * sum(v * v for v in values)) if values else None


def _class_factor(task: str) -> float:
    return 2.0 if task == "multiclass" else 1.0


def _mediation_rows(e: EventFields) -> Iterator[Record]:
    for layer, variables in e.mediation.items():
        for erased, m in variables.items():
            fitted = None if m.weights in (None, e.weights) else f"eraser fitted under {m.weights} weights"
            for name, value in m.gone.items():
                note = "; ".join(part for part in (m.note, m.withheld.get(name), fitted) if part) or None
                yield _row("mediation", name, value, note=note, layer=layer, by=erased)
            for name, value in m.random.items():
                yield _row("mediation_random", name, value, note=m.withheld.get(name), layer=layer, by=erased)
            for measure, change in (
                ("mediation_accuracy", m.accuracy),
                ("mediation_random_accuracy", m.random_accuracy),
            ):
                if change is not None:
                    yield _row(measure, None, change, layer=layer, by=erased)


def _entanglement_rows(e: EventFields) -> Iterator[Record]:
    for layer, found in e.entanglement.items():
        yield _row("entanglement", None, found.cosine, note=found.note, layer=layer)
        for one, others in found.pairs.items():
            for other, cosine in others.items():
                yield _row("entanglement", one, cosine, layer=layer, by=other)
        for erased, lost in found.collateral.items():
            for probed, value in lost.items():
                yield _row("collateral_decodability", probed, value, layer=layer, by=erased)
        if found.participation is not None:
            yield _row("participation", None, found.participation, layer=layer, by="neurons")


def _group_rows(e: EventFields) -> Iterator[Record]:
    if e.groups is not None:
        yield _row("group", "worst_accuracy", e.groups.worst_accuracy, note=e.groups.worst)
        yield _row("group", "gap", e.groups.gap)
        for cell, accuracy in e.groups.accuracy.items():
            yield _row("group", "accuracy", accuracy, by=cell)


def _test_note(s: Sensitivity) -> str | None:
    test = None if s.z is None or s.p is None else f"z = {s.z:.2f}, p = {s.p:.3g} (Holm)"
    return "; ".join(part for part in (test, s.note) if part) or None


def magnitude_of(found: ByLevel, task: str) -> float | None:
    """An interventional effect as one number: the effect itself, √(2Σβ²) over centred classes, √Σβ² over other outputs."""
    if isinstance(found, Effect):
        return found.value
    values = [one.value for one in found.values() if one.value is not None]
    return math.sqrt(_class_factor(task) * sum(v * v for v in values)) if values else None
