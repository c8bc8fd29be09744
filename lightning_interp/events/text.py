"""An event as text: the equation, shares, what interventions and erasures said, groups, notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightning_interp.events.fields import EventFields
from lightning_interp.events.records import magnitude_of
from lightning_interp.results import Effect, Mediation, Share

HIDDEN_FACTOR = (
    "Effects speak of this network on this probe set, given no hidden factor: what is correlated with a variable is credited "
    "to it; only an intervention settles it."
)
PAIRS = 3  # named in the text as the most entangled


OUTPUT = {
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


def _entangled(e: EventFields) -> list[tuple[float, str, str, str]]:
    """The pairs of variables with the largest cosine, of all layers: at most `PAIRS` of them."""
    found = [(c, a, b, layer) for layer, x in e.entanglement.items() for a, row in x.pairs.items() for b, c in row.items()]
    return sorted(found, key=lambda pair: -pair[0])[:PAIRS]


def _layer_lines(e: EventFields) -> Iterator[str]:
    for layer, variables in e.mediation.items():
        for erased, m in variables.items():
            if text := _erasure_text(erased, m):
                yield f"erase {erased} at {layer}: {text}"
    if pairs := _entangled(e):
        yield "most entangled: " + ", ".join(f"{a} and {b} at {layer} (cosine {c:.2f})" for c, a, b, layer in pairs)


def _intervention_lines(e: EventFields) -> Iterator[str]:
    for name, found in e.intervention.items():
        gap = e.intervention_gap.get(name)
        size = magnitude_of(found, e.task)
        if size is not None:
            checked = "" if gap is None else f", estimate off by {_signed(gap)}"
            yield f"do({name}) = {_number(size)}{checked}"


def measured_line(e: EventFields) -> str:
    """When and on what it was measured."""
    where = {"val": "validation", "train": "training", "probe": "probe set"}.get(e.mode, e.mode)
    return f"after {e.step} steps, epoch {e.epoch}: n = {e.n}, {where}, {e.weights} weights"


def event_lines(e: EventFields) -> Iterable[str]:
    """The lines of `print(event)`."""
    yield measured_line(e)
    terms = [] if e.intercept is None else [_number(e.intercept)]
    for name, found in e.effect.items():
        size = e.magnitude.get(name)
        if size is None:
            terms.append(f"+ ?·{name}")
        elif isinstance(found, Effect) and found.low is not None and found.high is not None:
            terms.append(f"{_signed(size)}·{name} [{_number(found.low)}, {_number(found.high)}]")
        else:
            terms.append(f"{_signed(size)}·{name}")
    yield f"{OUTPUT.get(e.task, 'output')} = {' '.join(terms).removeprefix('+ ')} + unexplained"
    shares = [f"{name} {_share_text(s)}" for name, s in e.contribution.items() if s.value is not None]
    if shares:
        yield "share of variance: " + ", ".join(shares)
    yield from _intervention_lines(e)
    yield from _layer_lines(e)
    if e.groups is not None:
        yield f"worst group {e.groups.worst_accuracy:.3f} ({e.groups.worst}), gap {e.groups.gap:.3f}"
    for note in e.notes:
        yield f"note: {note}"
