"""An `Event`: one measurement of everything, at one training step, in plain types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lightning_interp.results import ByLevel, Effect, Entanglement, Groups, Mediation, Score, Sensitivity, Share

HIDDEN_FACTOR = (
    "Effects speak of this network on this probe set, given no hidden factor: what is correlated with a variable is credited "
    "to it; only an intervention settles it."
)
PAIRS = 3  # named in the text as the most entangled

Record = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One measurement of everything.

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

    def records(self) -> list[Record]:
        """The event as tidy rows, see `to_records`."""
        return list(_records(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, fit for a checkpoint or JSON."""
        plain = asdict(self)
        plain["notes"], plain["confounders"] = list(self.notes), list(self.confounders)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Event:
        """The event that `to_dict` wrote; fields that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        d = {k: v for k, v in plain.items() if k in known}
        d["contribution"] = {k: Share(**v) for k, v in d["contribution"].items()}
        for name in ("effect", "intervention"):
            d[name] = {k: _effect(v) for k, v in d[name].items()}
        d["decodability"] = {layer: {k: Score(**s) for k, s in scores.items()} for layer, scores in d["decodability"].items()}
        d["sensitivity"] = {
            layer: {k: {by: Sensitivity(**s) for by, s in rows.items()} for k, rows in variables.items()}
            for layer, variables in d["sensitivity"].items()
        }
        d["mediation"] = {  # not in checkpoints of the first version
            layer: {k: Mediation(**m) for k, m in erased.items()} for layer, erased in d.get("mediation", {}).items()
        }
        d["entanglement"] = {layer: Entanglement(**e) for layer, e in d.get("entanglement", {}).items()}
        d["groups"] = None if d["groups"] is None else Groups(**d["groups"])
        d["notes"], d["confounders"] = tuple(d["notes"]), tuple(d.get("confounders", ()))
        return cls(**d)

    def scalars(self) -> dict[str, float]:
        """{logged key: value} of everything that could be measured; never NaN."""
        out: dict[str, float] = {}
        for r in self.records():
            parts = ("measure", "layer", *(["by"] if r["measure"] == "mediation" else []), "variable")
            key = "/".join(str(r[k]) for k in parts if r[k] is not None)
            if r["measure"] == "group" and r["by"] is not None:
                key = f"{key}/{r['by']}"
            elif r["measure"] != "mediation" and r["by"] is not None:
                continue
            if r["value"] is not None and math.isfinite(r["value"]):
                out[key] = float(r["value"])
        return out

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def to_records(history: Iterable[Event]) -> list[Record]:
    """Events as a tidy list of dicts, one per number.

    Args:
        history: events, such as `monitor.history`.

    Returns:
        Rows with `step, epoch, measure, layer, variable, by, value, low, high, note`. `measure`, `layer` and `variable` are the
        parts of the logged key, `by` is the class, level, cell, or the erased or other variable; a value that could not be
        measured is None, with a note.
    """
    return [record for event in history for record in event.records()]


def _effect(plain: Mapping[str, Any]) -> ByLevel:
    if "value" in plain and not isinstance(plain["value"], Mapping):
        return Effect(**plain)
    return {by: Effect(**e) for by, e in plain.items()}


def _records(e: Event) -> Iterator[Record]:
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


def _share_rows(e: Event) -> Iterator[Record]:
    for name, s in e.contribution.items():
        yield _row("contribution", name, s.value, s.low, s.high, s.note)
        if s.debiased is not None:
            yield _row("contribution", name, s.debiased, note=s.note, by="debiased")


def _effect_rows(e: Event) -> Iterator[Record]:
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


def _probe_rows(e: Event) -> Iterator[Record]:
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


def _sensitivity_rows(e: Event) -> Iterator[Record]:
    for layer, variables in e.sensitivity.items():
        for name, found in variables.items():
            single = len(found) == 1
            for by, s in found.items():
                yield _row("sensitivity", name, s.value, note=_test_note(s), layer=layer, by=None if single else by)
                if s.tcav is not None:
                    yield _row("tcav", name, s.tcav, layer=layer, by=None if single else by)
            if not single:
                yield _row("sensitivity", name, _sensitivity_size(e, name, found), layer=layer)


def _sensitivity_size(e: Event, name: str, found: Mapping[str, Sensitivity]) -> float | None:
    # As for effects: √(2Σβ²) over centred classes, 2·sd over levels, whose deviations sum to zero.
    values = [s.value for s in found.values() if s.value is not None]
    coding = e.coding.get(name, {})
    levels = 4 / len(coding["levels"]) if coding.get("kind") == "categorical" else 1.0
    return math.sqrt(_class_factor(e.task) * levels * sum(v * v for v in values)) if values else None


def _class_factor(task: str) -> float:
    return 2.0 if task == "multiclass" else 1.0


def _mediation_rows(e: Event) -> Iterator[Record]:
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


def _entanglement_rows(e: Event) -> Iterator[Record]:
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


def _group_rows(e: Event) -> Iterator[Record]:
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


_OUTPUT = {
    "binary": "logit",
    "multiclass": "logits",
    "multilabel": "logits",
    "regression": "output",
}


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'} {abs(value):.2f}"


def _share_text(s: Share) -> str:
    raw, debiased = (None if x is None else f"{100 * x:.1f} %" for x in (s.value, s.debiased))
    return f"{raw}" if debiased in (None, raw) else f"{raw} (debiased {debiased})"


def _percent(change: float, digits: int) -> str:
    rounded = round(100 * change, digits)
    return f"{'−' if rounded < 0 else '+' if rounded > 0 else ''}{abs(rounded):.{digits}f} %"


def _erasure_text(erased: str, m: Mediation) -> str:
    """What erasing a variable does to every effect and to accuracy; and to its effect, what a random subspace does."""
    order = [n for n in (erased, *(n for n in m.gone if n != erased)) if m.gone.get(n) is not None]
    if not order:
        return ""
    parts = [f"{name} {_percent(-(m.gone[name] or 0.0), 0)}" for name in order]
    parts += [] if m.accuracy is None else [f"accuracy {_percent(m.accuracy, 1)}"]
    control = m.random.get(erased)
    return ", ".join(parts) + ("" if control is None else f"; random {_percent(-control, 1)}")


def _entangled(e: Event) -> list[tuple[float, str, str, str]]:
    """The pairs of variables with the largest cosine, of all layers: at most `PAIRS` of them."""
    found = [(c, a, b, layer) for layer, x in e.entanglement.items() for a, row in x.pairs.items() for b, c in row.items()]
    return sorted(found, key=lambda pair: -pair[0])[:PAIRS]


def _layer_lines(e: Event) -> Iterator[str]:
    for layer, variables in e.mediation.items():
        for erased, m in variables.items():
            if text := _erasure_text(erased, m):
                yield f"erase {erased} at {layer}: {text}"
    if pairs := _entangled(e):
        yield "most entangled: " + ", ".join(f"{a} and {b} at {layer} (cosine {c:.2f})" for c, a, b, layer in pairs)


def _intervention_lines(e: Event) -> Iterator[str]:
    for name, found in e.intervention.items():
        gap = e.intervention_gap.get(name)
        size = magnitude_of(found, e.task)
        if size is not None:
            checked = "" if gap is None else f", estimate off by {_signed(gap)}"
            yield f"do({name}) = {_number(size)}{checked}"


def _lines(e: Event) -> Iterable[str]:
    where = {"val": "validation", "train": "training", "probe": "probe set"}.get(e.mode, e.mode)
    yield f"after {e.step} steps, epoch {e.epoch}: n = {e.n}, {where}, {e.weights} weights"
    terms = [] if e.intercept is None else [_number(e.intercept)]
    for name, found in e.effect.items():
        size = e.magnitude.get(name)
        if size is None:
            terms.append(f"+ ?·{name}")
        elif isinstance(found, Effect) and found.low is not None and found.high is not None:
            terms.append(f"{_signed(size)}·{name} [{_number(found.low)}, {_number(found.high)}]")
        else:
            terms.append(f"{_signed(size)}·{name}")
    yield f"{_OUTPUT.get(e.task, 'output')} = {' '.join(terms)} + unexplained"
    shares = [f"{name} {_share_text(s)}" for name, s in e.contribution.items() if s.value is not None]
    if shares:
        yield "share of variance: " + ", ".join(shares)
    yield from _intervention_lines(e)
    yield from _layer_lines(e)
    if e.groups is not None:
        yield f"worst group {e.groups.worst_accuracy:.3f} ({e.groups.worst}), gap {e.groups.gap:.3f}"
    for note in e.notes:
        yield f"note: {note}"
