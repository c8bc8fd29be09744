"""`write_report`: one HTML file that says what a model uses, opens offline, and prints."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_interp.errors import InterpError
from lightning_interp.events import HIDDEN_FACTOR
from lightning_interp.report.contributions import contributions
from lightning_interp.report.effects import effects
from lightning_interp.report.equation import equation, equation_text
from lightning_interp.report.features import features, latest
from lightning_interp.report.figure import Figure, plotly_javascript, script_json
from lightning_interp.report.groups import groups
from lightning_interp.report.heatmap import heatmap
from lightning_interp.report.penalties import penalties
from lightning_interp.report.run import Run, Sources, finite, runs
from lightning_interp.report.samples import samples_table
from lightning_interp.report.theme import THEMES, template
from lightning_interp.report.verdict import verdict
from lightning_interp.report.wording import interval, number

COLUMNS = ("measure", "layer", "variable", "by", "value", "low", "high", "note")
LAYERED = {
    "decodability": "That a variable can be read at a layer does not say that the model uses it.",
    "sensitivity": "How the output answers to a step along the variable's direction at the layer.",
    "mediation": "How much of a variable's effect is gone when it is erased at the layer: what an edit there would do.",
    "entanglement": "How far two variables share their directions: where they do, one is not cut without the other.",
}
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(history: Sources, path: str | os.PathLike[str], title: str = "What the model uses") -> Path:
    """Write one self-contained HTML file; it opens offline, and prints on A4.

    It is 4.8 MB and what the records take: Plotly's JavaScript is in it. It is written to a file beside it and renamed, so that
    there is never half a report. Penalties, warnings and discovered features are in a log directory, not in events: see
    `read_log_directory`.

    Args:
        history: events such as `monitor.history`, records or a `Run`; or {run: one of these}, shown side by side.
        path: the file, replaced if it is there.
        title: at the top.

    Returns:
        The path.

    Raises:
        InterpError: there is no event, plotly is not installed, or the directory is not there.

    Example:
        >>> import tempfile
        >>> from lightning_interp import Event, write_report
        >>> from lightning_interp.results import Share
        >>> event = Event(9, 0, 60, "balanced", "val", "binary", contribution={"grass": Share(0.7), "unexplained": Share(0.3)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report([event], f"{folder}/report.html").name
        'report.html'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InterpError(f"`path={str(path)!r}`: there is no directory '{path.parent}'.")
    text = page(history, title)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(part, 0o666 & ~_umask())  # mkstemp gives a file to its owner alone
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def page(history: Sources, title: str = "What the model uses") -> str:
    """The report as a string, see `write_report`."""
    found = runs(history)
    if not any(run.records or run.features for run in found.values()):
        raise InterpError("there is no event yet: nothing to report.")
    suspects = list(dict.fromkeys(name for run in found.values() for name in run.confounders))
    drawn: list[Figure] = []
    body = "".join(section for part in _PARTS if (section := part(found, suspects, drawn)))
    static = files("lightning_interp.report") / "static"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    data = {
        "figures": [{"data": f.data, "layout": f.layout} for f in drawn],
        "templates": {theme: template(theme) for theme in THEMES},
    }
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><meta name="generator" content="lightning_interp">'
        f"<style>{(static / 'report.css').read_text(encoding='utf-8')}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="small">Written {now} by lightning_interp.</p></header>{body}</main>'
        f'<script type="application/json" id="data">{script_json(data)}</script>'
        f"<script>{plotly_javascript()}</script><script>{(static / 'report.js').read_text(encoding='utf-8')}</script>"
        "</body></html>\n"
    )


Part = Callable[[Mapping[str, Run], Sequence[str], list[Figure]], str]


def _section(title: str, lead: str, *parts: str) -> str:
    shown = [part for part in parts if part]
    head = f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>'
    if shown and shown[0].startswith("<div"):  # on paper a heading stays with its first figure
        head = f'<div class="keep">{head}{shown.pop(0)}</div>'
    return f"<section>{head}{''.join(shown)}</section>"


def _place(figure: Callable[[], Figure], drawn: list[Figure]) -> str:
    """Where a figure is drawn; empty where there is nothing to draw."""
    try:
        drawn.append(figure())
    except InterpError:
        return ""
    one = drawn[-1]
    return f'<div class="figure" role="img" aria-label="{escape(one.title)}" style="height:{one.layout["height"]}px"></div>'


# --- the parts, from top to bottom ------------------------------------------------------------------------------------


def _in_short(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    cards = "".join(_card(name, run, suspects) for name, run in found.items() if run.records)
    return f'<section>{cards}<p class="caveat">{escape(HIDDEN_FACTOR)}</p></section>'


def _card(name: str, run: Run, suspects: Sequence[str]) -> str:
    said = verdict(run, suspects)
    step = run.step("effect")
    measured = run.equations.get(-1 if step is None else step, "").partition("\n")[0]
    truth = [
        f"By intervention, do({r['variable']}) = {number(r['value'])}{interval(r)}." for r in run.rows("intervention")
        if r["step"] == step and r["by"] is None and finite(r["value"])
    ]  # fmt: skip
    small = [said["worst"], *truth, f"Measured {measured}." if measured else ""]
    return (
        f'<article class="card {said["level"]}">'
        + (f'<p class="run">{escape(name)}</p>' if name else "")
        + f'<p class="verdict">{escape(said["text"])}</p>{_bar(said["parts"])}'
        + (f'<p class="equation">{escape(equation_text(run, step))}</p>' if step is not None else "")
        + f'<p class="small">{escape(" ".join(filter(None, small)))}</p></article>'
    )


def _bar(parts: Sequence[Mapping[str, Any]]) -> str:
    """The shares as one bar, and below it what each colour is."""
    kinds = ["unexplained" if p["name"] == "unexplained" else "named" for p in parts]
    pieces = "".join(
        f'<span class="{kind}" style="flex:{max(0.0, p["share"]):.4f} 0 0;background-color:{p["colour"]}"></span>'
        for kind, p in zip(kinds, parts)
    )
    names = "".join(
        f'<li><span class="{kind}" style="background-color:{p["colour"]}"></span>{escape(p["name"])} {p["text"]}</li>'
        for kind, p in zip(kinds, parts)
    )
    return f'<div class="bar">{pieces}</div><ul class="key">{names}</ul>' if parts else ""


def _now(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    lead = (
        "What each variable does to the output, the others held fixed, with its 95 % interval. A diamond is what an "
        "intervention found: the truth to check the estimate against."
    )
    figure = _place(lambda: equation(found), drawn)
    return _section("Now", lead, figure) if figure else ""


def _how(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    lead = "Each bar is one measurement. What the named variables do not explain is a share of its own."
    figures = [_place(lambda draw=draw: draw(found), drawn) for draw in (contributions, effects, groups)]  # type: ignore[misc]
    return _section("How that came about", lead, *figures) if any(figures) else ""


def _where(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    out = []
    for measure, lead in LAYERED.items():
        figure = _place(lambda measure=measure: heatmap(found, measure), drawn)  # type: ignore[misc]
        out += [f'<div class="keep"><p>{escape(lead)}</p>{figure}</div>'] if figure else []
    return _section("Where in the network", "At the last event, layer by layer.", *out) if out else ""


def _done(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    figure = _place(lambda: penalties(found), drawn)
    alarms = _list(found, "alarms")
    return (
        _section("What was done, and what was said", "Penalties over training, and warnings.", figure, alarms)
        if figure + alarms
        else ""
    )


def _unnamed(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    figure = _place(lambda: features(found), drawn)
    tables = [
        f"<h3>{escape(', '.join(filter(None, (name, layer))))}</h3>{samples_table(event['features'])}"
        for name, run in found.items() for layer, event in latest(run).items()
    ]  # fmt: skip
    lead = "Features of what the named variables leave unexplained, and the samples that they are strongest on."
    return _section("Features without a name", lead, figure, *tables) if figure else ""


def _numbers(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    # no button inside: Chromium would not repeat the head on every printed page
    heads = "".join(f'<th tabindex="0">{h}</th>' for h in ("run", "step", *COLUMNS))
    ends = {name: max(run.steps(), default=None) for name, run in found.items()}
    last = [(name, [r for r in run.records if r["step"] == ends[name]]) for name, run in found.items()]
    rows = ["".join(_cell(v) for v in (name or "–", r["step"], *(r[c] for c in COLUMNS))) for name, of in last for r in of]
    table = (
        f'<table id="records"><thead><tr>{heads}</tr></thead><tbody>{"".join(f"<tr>{r}</tr>" for r in rows)}</tbody></table>'
    )
    lead = "All records of the last event. A click on a heading sorts."
    return "" if not rows else _section("The numbers", lead, '<button type="button" id="copy">Copy as a table</button>', table)


def _cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = str(value) if isinstance(value, int) else f"{value:.4g}".replace("-", "−")
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def _notes(found: Mapping[str, Run], suspects: Sequence[str], drawn: list[Figure]) -> str:
    measured = []
    for name, run in found.items():
        steps = run.steps()
        if not steps:
            continue
        head = run.equations.get(steps[-1], "").partition("\n")[0]
        count = f"{len(steps)} events, steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"one event, step {steps[0]}"
        measured.append(f"<li>{escape(': '.join(filter(None, (name, count))))}{escape(f'; {head}' if head else '')}</li>")
    known = f"Declared as confounders: {', '.join(suspects)}." if suspects else "Which variables are confounders is not known."
    return _section(
        "How this was measured",
        known,
        f"<ul>{''.join(measured)}</ul>",
        _list(found, "notes"),
        f'<p class="caveat">{escape(HIDDEN_FACTOR)}</p>',
    )


def _list(found: Mapping[str, Run], what: str) -> str:
    """What was said, once each, with the step at which it was said first."""
    first: dict[tuple[str, str], int] = {}
    for name, run in found.items():
        for step, texts in sorted(getattr(run, what).items()):
            for text in texts:
                first.setdefault((name, text), step)
    lines = [
        f"{name + ', ' if name else ''}step {step}: {text.removeprefix(f'step {step}: ')}"
        for (name, text), step in first.items()
    ]
    return f'<ul class="{what}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>' if lines else ""


_PARTS: tuple[Part, ...] = (_in_short, _now, _how, _where, _done, _unnamed, _numbers, _notes)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
