"""Coefficients of an event, in the coding of the training step."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_interp.events import Event
from lightning_interp.functional.coding import Factor
from lightning_interp.results import Effect


def held_out_coefficients(event: Event, factor: Factor, outputs: int) -> Tensor | None:
    """A variable's coefficients as an event measured them.

    The event and the training step may code it differently: levels that one of them has not seen, another spread of a
    continuous variable.

    Args:
        event: the event.
        factor: the variable as it is coded in training.
        outputs: columns of what is explained.

    Returns:
        `[width, outputs]`; None where the event does not hold them, or not for these levels and outputs.
    """
    found, coding = event.effect.get(factor.name), event.coding.get(factor.name)
    if found is None or coding is None:
        return None
    values = [e.value for e in ([found] if isinstance(found, Effect) else found.values())]
    if any(v is None for v in values) or len(values) % outputs:
        return None
    effect = torch.tensor(values, dtype=torch.float64).view(-1, outputs)  # levels first, then classes
    if coding["kind"] == "continuous" or not factor.discrete:
        fits = coding["kind"] == factor.kind and len(effect) == 1
        return effect * (factor.scale / coding["scale"]) if fits else None
    levels = coding["values"]
    if coding["kind"] == "binary":
        effect = torch.cat([-effect / 2, effect / 2])
    if len(effect) != len(levels) or not set(factor.levels) <= set(levels):
        return None
    own = effect[[levels.index(level) for level in factor.levels]]
    return torch.linalg.lstsq(factor.level_codes(), own - own.mean(0)).solution
