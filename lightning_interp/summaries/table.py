"""All events of a run as a short table of text, for the terminal at the end of a training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_interp.events import Effect, Event

HEADS = ("", "effect", "95 % interval", "share", "debiased", "share: first -> last")


def summary_table(history: Sequence[Event], prefix: str = "") -> str:
    """What the last event says of every variable, and how its share was at the first. The table itself is plain ASCII.

    Args:
        history: events, at least one.
        prefix: that of the logged keys, to tell two monitors apart.
    """
    first, last = history[0], history[-1]
    names = [*last.effect, *(n for n in last.contribution if n not in last.effect)]
    rows = [HEADS, *(_row(name, first, last) for name in names)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]).rstrip() for row in rows]
    count = "1 event, step" if len(history) == 1 else f"{len(history)} events, steps {first.step} to"
    head = f"What the model uses{f' ({prefix})' if prefix else ''}: {count} {last.step}, n = {last.n}, {last.weights} weights"
    worst = [] if last.groups is None else [f"worst group {last.groups.worst_accuracy:.3f} ({last.groups.worst})"]
    marked = ["* a confounder"] if set(last.confounders) & set(names) else []
    return "\n".join([head, *lines, *worst, *marked])


def _row(name: str, first: Event, last: Event) -> tuple[str, ...]:
    found, size, share = last.effect.get(name), last.magnitude.get(name), last.contribution.get(name)
    one = found if isinstance(found, Effect) else None
    before = first.contribution.get(name)
    now = None if share is None else share.value
    return (
        f"{name} *" if name in last.confounders else name,
        ("withheld" if size is None else _number(size)) if name in last.effect else "",
        "" if one is None or one.low is None or one.high is None else f"[{_number(one.low)}, {_number(one.high)}]",
        _percent(now),
        "" if share is None or share.debiased is None else _percent(share.debiased),
        "" if first is last else f"{_percent(None if before is None else before.value)} -> {_percent(now)}",
    )


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _percent(value: float | None) -> str:
    return "withheld" if value is None else f"{100 * value:.1f} %"
