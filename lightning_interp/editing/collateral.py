"""What an edit costs: the given variables, accuracy, and what taking out random directions costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.certificate import change
from lightning_interp.editing.case import Case, erased
from lightning_interp.editing.fitting import random_eraser
from lightning_interp.editing.plan import Site
from lightning_interp.errors import EditRefusedError, InterpError
from lightning_interp.events import Event
from lightning_interp.functional.erasure import Eraser

CONTROLS = 3  # random subspaces


def random_control(case: Case, site: Site, eraser: Eraser, before: Event) -> dict[str, Any]:
    """What taking out as many random directions does, the mean of a few draws."""
    changes = []
    for draw in range(CONTROLS):
        with erased(site, random_eraser(eraser, case.seed + draw)):
            changes.append(change(before, case.event(["contribution", "groups"]), [v.name for v in case.variables]))
    effect = {v.name: _mean([c[v.name]["effect"][1] for c in changes]) for v in case.variables}
    groups = {name: _mean([c[name][1] for c in changes]) for name in ("worst_group", "mean_group_accuracy")}
    return {"rank": eraser.rank, "draws": CONTROLS, "effect": effect, **groups}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def collateral(case: Case, before: Event, after: Event) -> tuple[dict[str, float | None], list[str]]:
    """What was lost: of each given variable's effect, as a fraction, and of accuracy, averaged over the cells."""
    found = change(before, after, [v.name for v in case.variables])
    out: dict[str, float | None] = {}
    for v in case.variables[1:]:
        old, new = found[v.name]["effect"]
        out[v.name] = 1 - new / old if old and new is not None else None
    accuracies = found["mean_group_accuracy"]
    out["accuracy"] = None if None in accuracies else accuracies[0] - accuracies[1]
    return out, [f"collateral on '{name}' was not measured" for name, value in out.items() if value is None]


def refuse_over(most: float | None, made: Mapping[str, Any]) -> None:
    """Refuse an edit whose collateral is over what is allowed.

    Args:
        most: largest loss allowed; None: any.
        made: the certificate.

    Raises:
        EditRefusedError: it is over.
        InterpError: no collateral could be measured.
    """
    lost = {name: value for name, value in made["erasure"]["collateral"].items() if value is not None}
    if most is None:
        return
    if not lost:
        raise InterpError("`max_collateral` expects `given` variables or a `target` to hold the edit against, got neither.")
    ends = {**{n: made["change"][n]["effect"] for n in made["concepts"]}, "accuracy": made["change"]["mean_group_accuracy"]}
    over = [
        f"{name} {100 * value:.0f} % ({ends[name][0]:.3g} to {ends[name][1]:.3g})"
        for name, value in lost.items()
        if value > most
    ]
    if over:
        raise EditRefusedError(
            f"{made['kind']} of '{made['confounder']}' at the {made['erasure']['at']} is refused, it loses "
            f"{', '.join(over)}; `max_collateral={most:g}`. The weights are as they were.",
            made,
        )
