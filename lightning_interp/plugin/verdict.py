"""What a reader should see first of an event: in one sentence what the model uses, and the shares as a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.report.run import OWN, Run, finite
from lightning_interp.report.theme import styles
from lightning_interp.report.wording import percent

LEANS, HARDLY = (
    0.25,
    0.02,
)  # shares of the output's variance: over the first a model leans on it, under the second hardly uses it


def verdict(run: Run, confounders: Sequence[str]) -> dict[str, Any]:
    """The sentence, how serious it is, and the parts of the bar, of a `Run` with the records of one event.

    Args:
        run: records of one event.
        confounders: variables that should not matter; empty where that is not known.

    Returns:
        {"text", "worst", "level": "bad", "some", "good" or "unknown", "parts": [{"name", "share", "text", "colour"}]}.
    """
    shares = {r["variable"]: r["value"] for r in run.rows("contribution") if r["by"] is None and finite(r["value"])}
    debiased = {r["variable"]: r["value"] for r in run.rows("contribution") if r["by"] == "debiased" and finite(r["value"])}
    named = [n for n in run.variables if n in shares]
    look = styles(named, [n for n in named if n in confounders])
    order = [*(n for n in named if n in confounders), *(n for n in named if n not in confounders), *OWN]
    parts = [
        {"name": n, "share": shares[n], "text": percent(shares[n]), "colour": look[n].colour} for n in order if n in shares
    ]
    level, text = _sentence({n: debiased.get(n, shares[n]) for n in named}, shares, [n for n in named if n in confounders])
    return {"text": text, "worst": _worst(run), "level": level, "parts": parts}


def _sentence(used: dict[str, float], shares: dict[str, float], confounders: Sequence[str]) -> tuple[str, str]:
    if not used:
        return "unknown", "What the output is made of was not measured at this event."
    if not confounders:
        first = max(used, key=lambda n: shares[n])
        return "unknown", f"Uses {first} most: {percent(shares[first])} of the output's variance."
    worst = max(confounders, key=lambda n: used[n])
    share = f"{percent(shares[worst])} of the output's variance"
    if used[worst] > LEANS:
        return "bad", f"Leans on {worst}: {share}."
    if used[worst] > HARDLY:
        return "some", f"Uses {worst} in part: {share}."
    others = "" if len(confounders) == 1 else ", most of the confounders"
    return "good", f"Hardly uses {worst}: {share}{others}."


def _worst(run: Run) -> str:
    found = [r for r in run.rows("group") if r["variable"] == "worst_accuracy" and finite(r["value"])]
    return "" if not found else f"Worst group: {percent(found[0]['value'])} right ({found[0]['note']})."
