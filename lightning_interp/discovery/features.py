"""What was found at an event: features that nobody has named, in plain types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Feature:
    """A property of samples that a layer holds and no variable names.

    Attributes:
        name: "feature 3", kept from event to event; a number is never given twice.
        contribution: share of the output's variance, 0…1: its LMG share, among the top features, of what the named ones leave.
        suspicion: what features are ranked by, contribution × (1 + flip + early) / 3.
        clarity: share of the code's variance that lies between samples with and without, on held-out rows, 0…1; .64 is a cut
            through a normal distribution, 1 two values.
        prevalence: share of samples that have it.
        target: correlation of code and task label, −1…1 (several classes: the correlation ratio, 0…1); None without a target.
        flip: whether its relation to the label turns round on samples that the model gets wrong, 0…1 (1: reversed and as
            strong); None where too few are wrong, or right.
        early: 1 if it contributed from the first event on, 0 if only at the last; None at the first event.
        stability: absolute correlation of who has it with the last event, 0…1; None where it is new.
        causal: share of what the named variables leave unexplained that goes when it is deleted from the layer; under 0: grows.
            None for those not tried.
        groups: {cell of the named variables: share of its samples that have it}.
        promoted: the name that it was given, or None.
        strongest: samples with the largest codes, as `{"kind": "image", "png": …}`, `{"kind": "text", "texts": …}` or
            `{"kind": "rows", "columns": …, "rows": …}`; None where they are not kept.
        weakest: samples with the smallest codes.
    """

    name: str
    contribution: float
    suspicion: float
    clarity: float
    prevalence: float
    target: float | None = None
    flip: float | None = None
    early: float | None = None
    stability: float | None = None
    causal: float | None = None
    groups: Mapping[str, float] = field(default_factory=dict)
    promoted: str | None = None
    strongest: Mapping[str, Any] | None = None
    weakest: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FeatureEvent:
    """Everything that was found at a layer at one training step.

    Attributes:
        step: optimizer steps done.
        epoch: zero-based.
        layer: where.
        n: samples.
        weights: "balanced" or "natural", of the equation on the named variables.
        unexplained: share of the output's variance that the named variables leave, 0…1.
        unnamed: what the features leave of it too.
        features: most suspicious first.
        notes: what was decided or withheld.
        cost_seconds: time that the event took, without the passes over the data before it.
    """

    step: int
    epoch: int
    layer: str
    n: int
    weights: str
    unexplained: float | None
    unnamed: float | None
    features: tuple[Feature, ...] = ()
    notes: tuple[str, ...] = ()
    cost_seconds: float = 0.0

    def __getitem__(self, name: str) -> Feature:
        """The feature of a name.

        Raises:
            KeyError: it is not in the event.
        """
        return {f.name: f for f in self.features}[name]

    def scalars(self) -> dict[str, float]:
        """`discovery/{layer}/{feature}` and `…/unnamed`: shares of the output's variance."""
        found = {f.name: f.contribution for f in self.features}
        rest = {} if self.unnamed is None else {"unnamed": self.unnamed}
        return {f"discovery/{self.layer}/{name}": value for name, value in {**found, **rest}.items()}

    def without_samples(self) -> FeatureEvent:
        """The same without the samples' pictures, for the history."""
        return replace(self, features=tuple(replace(f, strongest=None, weakest=None) for f in self.features))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint or a log."""
        return {**vars(self), "features": [dict(vars(f)) for f in self.features], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FeatureEvent:
        """The event of `to_dict`; what a later version has added is left out."""
        known = {f.name for f in fields(Feature)}
        found = tuple(Feature(**{k: v for k, v in f.items() if k in known}) for f in plain["features"])
        own = {f.name for f in fields(cls)}
        return cls(**{**{k: v for k, v in plain.items() if k in own}, "features": found, "notes": tuple(plain["notes"])})

    def __str__(self) -> str:
        share = "withheld" if self.unexplained is None else f"{100 * self.unexplained:.1f} %"
        lines = [f"step {self.step}, epoch {self.epoch}, layer {self.layer}, n = {self.n}: unexplained {share}"]
        if self.features:
            width = max(len(_title(f)) for f in self.features)
            lines.append(f"{'':{width}}  share  suspicion  clarity  has it  label   flip  early  stable  deleted")
        for f in self.features:
            numbers = (f.target, f.flip, f.early, f.stability, f.causal)
            optional = "  ".join(f"{'–' if v is None else f'{v:.2f}':>5}" for v in numbers)
            first = f"{f.contribution:5.3f}  {f.suspicion:9.3f}  {f.clarity:7.2f}  {f.prevalence:6.2f}"
            lines.append(f"{_title(f):{width}}  {first}  {optional}")
        if self.unnamed is not None:
            lines.append(f"unexplained, unnamed: {self.unnamed:.3f}")
        return "\n".join([*lines, *self.notes])


def _title(f: Feature) -> str:
    return f.name if f.promoted is None else f"{f.name} ({f.promoted})"
