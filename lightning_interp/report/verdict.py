"""What a reader should see first of an event: in one sentence what the model uses, and the shares as a bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.report.features import latest
from lightning_interp.report.run import OWN, Run, finite
from lightning_interp.report.theme import styles
from lightning_interp.report.wording import percent

LEANS = 0.25  # share of the output's variance over which a model leans on a confounder
HARDLY = 0.02  # share under which it hardly uses it


def verdict(run: Run, confounders: Sequence[str]) -> dict[str, Any]:
    """The sentence, how serious it is, and the parts of the bar, at the last event with a contribution.

    Args:
        run: what was measured.
        confounders: variables that should not matter; empty where that is not known.

    Returns:
        {"step", "text", "worst", "level": "bad", "some", "good" or "unknown", "parts": [{"name", "share", "text", "colour"}]}.
    """
    step = run.step("contribution")
    rows = [r for r in run.rows("contribution") if r["step"] == step and finite(r["value"])]
    shares = {r["variable"]: r["value"] for r in rows if r["by"] is None}
    debiased = {r["variable"]: r["value"] for r in rows if r["by"] == "debiased"}
    named = [n for n in run.variables if n in shares]
    suspects = [n for n in named if n in confounders]
    look = styles(named, suspects)
    order = [*suspects, *(n for n in named if n not in suspects), *OWN]
    parts = [
        {"name": n, "share": shares[n], "text": percent(shares[n]), "colour": look[n].colour} for n in order if n in shares
    ]
    level, text = _sentence({n: debiased.get(n, shares[n]) for n in named}, shares, suspects)
    unnamed = _unnamed(run)
    if unnamed and level != "bad":
        level, text = "some", unnamed
    return {"step": step, "text": text, "worst": _worst(run), "level": level, "parts": parts}


def _sentence(used: Mapping[str, float], shares: Mapping[str, float], confounders: Sequence[str]) -> tuple[str, str]:
    """Judged by the debiased share, which is zero on average for an unused variable; what is printed is that of the bar."""
    if not used:
        return "unknown", "What the output is made of was not measured."
    if not confounders:
        first = max(used, key=lambda n: shares[n])
        return "unknown", f"Of what is named, uses {first} most: {percent(shares[first])} of the output's variance."
    worst = max(confounders, key=lambda n: used[n])
    share = f"{percent(shares[worst])} of the output's variance"
    if used[worst] > LEANS:
        return "bad", f"Leans on {worst}: {share}."
    if used[worst] > HARDLY:
        return "some", f"Uses {worst} in part: {share}."
    others = "" if len(confounders) == 1 else ", most of the confounders"
    return "good", f"Hardly uses {worst}: {share}{others}."


def _unnamed(run: Run) -> str:
    """The feature without a name that makes most of the output, where that is much."""
    found = [
        f for event in latest(run).values() for f in event["features"] if not f.get("promoted") and finite(f["contribution"])
    ]
    top = max(found, key=lambda f: f["contribution"], default=None)
    if top is None or top["contribution"] <= LEANS:
        return ""
    return f"Uses {top['name']}, which nobody has named: {percent(top['contribution'])} of the output's variance."


def _worst(run: Run) -> str:
    step = run.step("group")
    found = [r for r in run.rows("group") if r["step"] == step and r["variable"] == "worst_accuracy" and finite(r["value"])]
    return "" if not found else f"Worst group: {percent(found[0]['value'])} right ({found[0]['note']})."
