"""An event as a fragment of HTML, for notebooks: the equation typeset with its intervals, shares, groups, notes."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from lightning_interp.events.fields import EventFields
from lightning_interp.events.records import magnitude_of
from lightning_interp.events.text import HIDDEN_FACTOR, OUTPUT, measured_line
from lightning_interp.results import ByLevel, Effect, Share

SMALL = "font-size:85%;opacity:0.75"
TERM = "display:inline-block;text-align:center;vertical-align:top;margin:0 0.3em"


def event_html(e: EventFields) -> str:
    """The event in the notebook's own colours; every name is escaped.

    Args:
        e: what to show.
    """
    return (
        f'<div class="lightning-interp-event"><div style="{SMALL}">{escape(measured_line(e))}</div>'
        f'<div style="font-size:120%;margin:0.5em 0">{_equation(e)}</div>{_shares(e)}{_groups(e)}{_notes(e)}'
        f'<div style="{SMALL}">{escape(HIDDEN_FACTOR)}</div></div>'
    )


def _equation(e: EventFields) -> str:
    """Every term with its interval below it."""
    terms = [] if e.intercept is None else [(_number(e.intercept), "")]
    for name, found in e.effect.items():
        size = e.magnitude.get(name)
        sign = "" if not terms and (size or 0.0) >= 0 else "−" if size is not None and size < 0 else "+"
        amount = "?" if size is None else _number(abs(size))
        terms.append((f"{sign} {amount}·<i>{escape(name)}</i>", _interval(found)))
    terms.append(("+ unexplained", ""))
    body = "".join(f'<span style="{TERM}">{term}<br><span style="{SMALL}">{below}</span></span>' for term, below in terms)
    return f'<span style="{TERM}">{OUTPUT.get(e.task, "output")} =</span>{body}'


def _shares(e: EventFields) -> str:
    """A row for every share of the output's variance: effect, intervention, share, debiased, robustness."""
    rows = "".join(_row(e, name, share) for name, share in e.contribution.items())
    heads = ("", "effect", "95 % interval", "by intervention", "share of variance", "", "debiased", "robustness")
    return _table(heads, rows) if rows else ""


def _row(e: EventFields, name: str, share: Share) -> str:
    found, truth = e.effect.get(name), e.intervention.get(name)
    role = f' <span style="{SMALL}">confounder</span>' if name in e.confounders else ""
    width = 0.0 if share.value is None else 8 * min(1.0, max(0.0, share.value))
    colour = "#D55E00" if name in e.confounders else "#8C949E" if name not in e.effect else "#0072B2"
    share_text = _percent(share.value) if share.value is not None else f"withheld: {escape(share.note or '')}"
    cells = (
        _number(e.magnitude.get(name)) if name in e.effect else "",
        "" if found is None else _interval(found),
        "" if truth is None else _number(magnitude_of(truth, e.task)),
        share_text,
        f'<div style="width:8em"><div style="width:{width:.2f}em;height:0.8em;background:{colour}"></div></div>',
        "" if share.debiased is None else _percent(share.debiased),
        f"{found.robustness:.2f}" if isinstance(found, Effect) and found.robustness is not None else "",
    )
    levels = "" if found is None or isinstance(found, Effect) else "".join(_levels(found))
    return f'<tr><th style="text-align:left">{escape(name)}{role}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>{levels}'


def _levels(found: dict[str, Effect]) -> Iterator[str]:
    for by, one in found.items():
        cells = f"<td>{_number(one.value)}</td><td>{_interval(one)}</td>"
        head = f'<td style="text-align:left;padding-left:1.5em">{escape(by)}</td>'
        yield f'<tr style="{SMALL}">{head}{cells}<td colspan="5"></td></tr>'


def _groups(e: EventFields) -> str:
    if e.groups is None:
        return ""
    rows = ""
    for cell, accuracy in e.groups.accuracy.items():
        worst = cell == e.groups.worst
        name = f"<b>{escape(cell)}</b>" if worst else escape(cell)
        count = escape(str(e.groups.count.get(cell, "")))
        mark = "<b>worst</b>" if worst else ""
        rows += f'<tr><td style="text-align:left">{name}</td><td>{_percent(accuracy)}</td><td>{count}</td><td>{mark}</td></tr>'
    return _table(("group", "accuracy", "n", ""), rows)


def _notes(e: EventFields) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in e.notes)
    return f'<ul style="{SMALL}">{notes}</ul>' if notes else ""


def _table(heads: tuple[str, ...], rows: str) -> str:
    top = "".join(f"<th>{head}</th>" for head in heads)
    return f'<table style="margin:0.5em 0"><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>'


def _interval(found: ByLevel) -> str:
    if not isinstance(found, Effect) or found.low is None or found.high is None:
        return ""
    return f"[{_number(found.low)}, {_number(found.high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
