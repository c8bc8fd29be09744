"""`Sum`: several penalties on one confounder, as one term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_interp.penalties.step import Penalty, Step


class Sum(Penalty):
    """Adds up penalties on the same step.

    *Formula.* Σ w_i·P_i. *When it helps:* what one term cannot see, another does, as the output's contribution and a layer's
    independence. *When not:* one term that does the work: each weight is one more to choose. A cap is put on the sum.
    *Cost:* that of the members.

    Args:
        penalties: the members, one or more.
        weights: weight of each, 0 or more; None: 1 each.

    Raises:
        ValueError: no member, a member that replaces the loss, or weights that do not fit.

    Example:
        >>> from lightning_interp.penalties import ContributionPenalty, IndependencePenalty, Sum
        >>> both = Sum([ContributionPenalty(), IndependencePenalty("hsic")], weights=[1.0, 10.0])
    """

    def __init__(self, penalties: Sequence[Penalty], weights: Sequence[float] | None = None) -> None:
        self.penalties = tuple(penalties)
        self.weights = (1.0,) * len(self.penalties) if weights is None else tuple(weights)
        if not self.penalties:
            raise ValueError("`penalties` expects one or more, got none.")
        for member in self.penalties:
            if member.replaces_loss:
                raise ValueError(
                    f"`penalties`: {type(member).__name__} replaces the mean loss and cannot be weighed against others. "
                    "Give it a SuppressConfounder of its own."
                )
        if len(self.weights) != len(self.penalties):
            raise ValueError(f"`weights` expects {len(self.penalties)}, one for each penalty, got {len(self.weights)}.")
        if not all(weight >= 0 for weight in self.weights):
            raise ValueError(f"`weights` expects 0 or more each, got {list(self.weights)}.")
        self.capped = any(member.capped for member in self.penalties)
        self.needs_labels = any(member.needs_labels for member in self.penalties)
        self.needs_contrast = any(member.needs_contrast for member in self.penalties)
        self.needs_intervention = any(member.needs_intervention for member in self.penalties)
        self.needs_layer = any(member.needs_layer for member in self.penalties)
        self.needs_derivative = any(member.needs_derivative for member in self.penalties)
        self.needs_aim = any(member.needs_aim for member in self.penalties)
        self.needs_target = any(member.needs_target for member in self.penalties)
        self.window_rows = max(member.window_rows for member in self.penalties)
        self.every_n_steps = min(member.every_n_steps for member in self.penalties)

    def __call__(self, step: Step) -> Tensor | None:
        """The weighted sum of the terms that can be had; None if none can."""
        terms = [(weight, member(step)) for weight, member in zip(self.weights, self.penalties, strict=True)]
        found = [weight * term for weight, term in terms if term is not None]
        return sum(found[1:], found[0]) if found else None

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in their order."""
        return {"penalties": [member.state_dict() for member in self.penalties]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for member, own in zip(self.penalties, state["penalties"], strict=True):
            member.load_state_dict(own)
