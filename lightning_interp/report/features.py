"""Features that nobody named: what each makes of the output, the most suspicious first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.errors import InterpError, nearest
from lightning_interp.report.figure import Figure
from lightning_interp.report.panels import Panels
from lightning_interp.report.run import Run
from lightning_interp.report.theme import ALARM, COOL
from lightning_interp.report.wording import escape, hover, number, percent

ROW = 26  # pixels per feature
MOST = 15  # features drawn per layer
FeatureEvents = Sequence[Any]  # mappings, or what has `to_dict()`
SAID = {  # of every feature: {key: (heading of its column, what it is)}
    "suspicion": ("suspicion", "what features are ranked by"),
    "clarity": ("clarity", "how clearly it is there or not, 0 to 1"),
    "prevalence": ("has it", "share of samples that have it"),
    "target": ("label", "correlation with the label"),
    "flip": ("flip", "whether that turns round where the model is wrong, 0 to 1"),
    "early": ("early", "whether it was there from the beginning, 0 to 1"),
    "stability": ("stable", "correlation with the last event"),
    "causal": ("deleted", "share of what is unexplained that goes when it is deleted"),
}


def features(feature_events: FeatureEvents | Run | Mapping[str, FeatureEvents | Run], step: int | None = None) -> Figure:
    """Contributions of discovered features at one step, one panel per run and layer, the most suspicious first.

    Args:
        feature_events: the history of a `DiscoverFeatures`, what it logged, or a `Run`; or {run: one of these}.
        step: the last event not after it; None: the last.

    Raises:
        InterpError: no features were discovered by that step.
    """
    chosen = {
        ", ".join(part for part in (name, layer) if part): event
        for name, events in _named(feature_events).items()
        for layer, event in latest(events, step).items()
    }
    if not chosen:
        raise InterpError("no features were discovered: add DiscoverFeatures(layer=...) to the Trainer's callbacks.")
    most = max(min(MOST, len(e["features"])) for e in chosen.values())
    titles = [f"{escape(name)}, step {e['step']}: {percent(e['unnamed'])} stays unnamed" for name, e in chosen.items()]
    panels = Panels(titles, columns=2, height=ROW * max(2, most) + 20, linked="x")
    data = [{**_bars(e["features"][:MOST]), **panels.axes(i)} for i, e in enumerate(chosen.values())]
    layout = panels.layout(
        "Features without a name",
        x={"title": {"text": "share of the output's variance"}, "tickformat": ".1%"},
        y={"type": "category", "autorange": "reversed"},
    )
    return Figure(data, layout)


def latest(events: FeatureEvents | Run, step: int | None = None) -> dict[str, Mapping[str, Any]]:
    """{layer: its last event not after a step}."""
    known = events.features if isinstance(events, Run) else [e if isinstance(e, Mapping) else e.to_dict() for e in events]
    out: dict[str, Mapping[str, Any]] = {}
    for event in sorted(known, key=lambda e: e["step"]):
        if step is None or event["step"] <= step:
            out[str(event["layer"])] = event
    return out


def _named(source: Any) -> dict[str, Any]:
    if isinstance(source, Mapping):
        wrong = [v for v in source.values() if isinstance(v, (str, int, float))]
        if wrong:
            raise InterpError(f"`feature_events` expects a list of events or {{run: events}}.{nearest('step', source)}")
        return dict(source)
    return {"": source}


def _bars(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [escape(f["name"] if not f.get("promoted") else f"{f['name']}: {f['promoted']}") for f in found]
    return {
        "type": "bar", "orientation": "h", "y": names, "x": [f["contribution"] for f in found], "showlegend": False,
        "marker": {"color": [ALARM if f.get("promoted") else COOL[0] for f in found]}, "textposition": "auto",
        "text": [f"suspicion {number(f['suspicion'])}" for f in found],
        "hoverinfo": "text", "hovertext": [_text(f) for f in found],
    }  # fmt: skip


def _text(f: Mapping[str, Any]) -> str:
    said = [f"{what}: {number(f[key])}" for key, (_, what) in SAID.items() if f.get(key) is not None]
    named = f"promoted as {f['promoted']}" if f.get("promoted") else ""
    return hover(f"{f['name']}: {percent(f['contribution'])} of the output's variance", *said, named)
