"""All passes of its own that an event asks for, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_interp.activations.select import Layer
from lightning_interp.events import ByLevel, Event, magnitude_of
from lightning_interp.layers import LayerResult
from lightning_interp.measurement import Equation
from lightning_interp.passes.examples import Shown
from lightning_interp.passes.intervention import interventions
from lightning_interp.passes.mediation import mediations
from lightning_interp.passes.replay import Caller, Replay
from lightning_interp.passes.sensitivity import sensitivities
from lightning_interp.reading import Reader
from lightning_interp.variables import Variable

OWN_PASS = ("sensitivity", "mediation", "intervention")  # measures that run the model again


@dataclass(frozen=True)
class OwnPasses:
    """What every pass needs to know.

    Attributes:
        caller: how the model is called.
        layers: {name: Layer}.
        variables: those with labels.
        reader: reads values, target and sources from a batch.
        replay: the batches to run.
        seed: of random controls.
    """

    caller: Caller
    layers: Mapping[str, Layer]
    variables: Sequence[Variable]
    reader: Reader
    replay: Replay
    seed: int

    def added(
        self,
        event: Event,
        measures: Sequence[str],
        eq: Equation,
        results: Mapping[str, LayerResult],
        size: Mapping[str, float],
        shown: Sequence[Shown] = (),
    ) -> tuple[Event, list[str]]:
        """The event with the numbers of its own passes, and notes.

        Args:
            event: what is known without.
            measures: which are wanted.
            eq: the event's equation.
            results: what is known of each layer.
            size: {variable: its effect as one number}.
            shown: what the example sets said of the layers.
        """
        notes = [n for n in (self.replay.note(),) if n]
        if "sensitivity" in measures:
            parts = [(eq, results), *((s.eq, s.results) for s in shown)]
            found = sensitivities(self.caller, self.layers, parts, self.replay)
            event = replace(event, sensitivity=found)
            if self.caller.pooling.liftable and self.replay.batches:
                known = dict.fromkeys(n for _, read in parts for n, r in read.items() if r.directions)
                missing = [n for n in known if n not in found]
                notes += [f"sensitivity at layer '{n}' withheld: no gradient reaches it" for n in missing]
            if any(read for _, read in parts) and not self.caller.pooling.liftable:
                notes.append("sensitivity withheld: it is not defined for a pooling function")
        if "mediation" in measures:
            erased, said = mediations(self.caller, self.layers, results, eq, self.reader, self.replay, self.seed)
            notes += said
            event = replace(event, mediation=erased)
        if "intervention" in measures:
            effect, said = interventions(self.caller, self.variables, self.reader, eq, self.replay)
            notes += said
            event = replace(event, intervention=effect, intervention_gap=_gaps(event, effect, size))
        return event, notes


def _gaps(event: Event, effect: Mapping[str, ByLevel], size: Mapping[str, float]) -> dict[str, float]:
    out = {}
    for name, found in effect.items():
        true = magnitude_of(found, event.task)
        if true is not None and name in size:
            out[name] = size[name] - true
    return out
