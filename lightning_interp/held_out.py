"""A variable's coefficients on data that is not trained on: of an event, and between two events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_interp.events import Event
from lightning_interp.functional.coding import Factor
from lightning_interp.results import Effect
from lightning_interp.running_pattern import RunningPattern

MEMORY_ROWS = 1024  # over which training coefficients are averaged: after so many, a batch counts 1/e


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


class HeldOut:
    """How far training coefficients lie from those of held-out data: memorised labels keep them apart.

    At a measurement the training coefficients of late are known too. A coefficient that is zero in training is then not zero
    elsewhere; `aim` is the one in training at which that elsewhere would be, if the gap stays as it is until the next
    measurement.
    """

    def __init__(self) -> None:
        self._event: Event | None = None
        self._training = RunningPattern(0.0)
        self._aim: Tensor | None = None

    def take(self, event: Event) -> None:
        """Take a measurement in."""
        self._event = event

    def aim(self, factor: Factor, output: Tensor, z: Tensor) -> Tensor | None:
        """The confounder's coefficients to aim at in training.

        Args:
            factor: the confounder, as it is coded in training.
            output: what is explained of the batch, `[n, c]`.
            z: coded variables `[n, q]`, the confounder's columns first.

        Returns:
            `[width, c]`; None before the first measurement, or where it does not hold them.
        """
        before = None if self._event is None else self._training.directions(factor.width)
        self._training.momentum = math.exp(-len(z) / MEMORY_ROWS)
        self._training.observe(output, z)
        if self._event is not None:
            measured = held_out_coefficients(self._event, factor, output.shape[1])
            if measured is not None and before is not None and before.shape == measured.shape:
                self._aim, self._event = before - measured.to(before), None
        fits = self._aim is not None and self._aim.shape == (factor.width, output.shape[1])
        return self._aim if fits else None

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors only."""
        event = None if self._event is None else self._event.to_dict()
        return {"event": event, "training": self._training.state_dict(), "aim": self._aim}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._event = None if state["event"] is None else Event.from_dict(state["event"])
        self._training.load_state_dict(state["training"])
        self._aim = state["aim"]
