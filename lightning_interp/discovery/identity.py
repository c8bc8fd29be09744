"""Keeping a feature's name from event to event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SAME = 0.5  # absolute correlation of who has it, under which a feature is a new one
MIN_SHARED = 30  # samples that two events must share to compare who has it
REMEMBERED = 64


class Match(NamedTuple):
    """What a feature is called.

    Attributes:
        name: "feature 3".
        stability: absolute correlation of who has it, then and now; None for a new one.
        reversed: whether the side that has it has become the other one.
    """

    name: str
    stability: float | None
    reversed: bool


class Identities:
    """Names of features, given by who has them: found features are matched with the known ones as a set.

    A feature that is not found at one event keeps its name for later ones. Weights change from event to event, and with them
    every direction; the samples do not.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor]] = {}  # name: (keys, who has it), latest first
        self._given = 0
        self._events = 0
        self._shares: dict[str, list[tuple[int, float]]] = {}

    def match(self, key: Tensor, has: Tensor) -> list[Match]:
        """Name features, old ones and new ones.

        Args:
            key: of the samples, int64 `[n]`, in ascending order, each once.
            has: who has the features, bool `[n, m]`.
        """
        old = list(self._known)
        corr = torch.stack([_agreement(*self._known[name], key, has) for name in old]) if old else torch.zeros(0, has.shape[1])
        # What cannot be the same counts for nothing: two poor matches must not cost a good one.
        worth = torch.where(corr.abs() >= SAME, corr.abs(), 0)
        pairs = dict(zip(*(side.tolist() for side in linear_sum_assignment(-worth.numpy())[::-1])))
        out = []
        for j in range(has.shape[1]):
            r = float(corr[pairs[j], j]) if j in pairs else 0.0
            if abs(r) >= SAME:
                out.append(Match(old[pairs[j]], abs(r), r < 0))
            else:
                self._given += 1
                out.append(Match(f"feature {self._given}", None, False))
        return out

    def comparable(self, key: Tensor) -> bool:
        """Whether enough samples are those of earlier events, so that features can keep their names."""
        return not self._known or any(int(torch.isin(then, key).sum()) >= MIN_SHARED for then, _ in self._known.values())

    def remember(self, key: Tensor, has: Mapping[str, Tensor], shares: Mapping[str, float]) -> None:
        """Take in an event.

        Args:
            key: as in `match`.
            has: {name: who has it, bool `[n]`}.
            shares: {name: its contribution}.
        """
        fresh = {name: (key, bits.clone()) for name, bits in has.items()}
        older = {name: found for name, found in self._known.items() if name not in fresh}
        self._known = dict(list({**fresh, **older}.items())[:REMEMBERED])
        for name, share in shares.items():
            known = self._shares.setdefault(name, [])
            if not known or share > known[-1][1]:  # when it first came to any height is all that `early` asks
                known.append((self._events, share))
            if len(known) > REMEMBERED:
                del known[1:-1:2]
        self._shares = {name: found for name, found in self._shares.items() if name in self._known}
        self._events += 1

    def early(self, name: str, share: float) -> float | None:
        """How early a feature came: 1 from the first event on, 0 only now; it counts from half of its largest share.

        Args:
            name: of the feature.
            share: its contribution at the event that is under way.
        """
        if not self._events:
            return None
        shares = [*self._shares.get(name, []), (self._events, share)]
        half = max(s for _, s in shares) / 2
        return 1 - next(i for i, s in shares if s >= half) / self._events

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        keys = {name: key for name, (key, _) in self._known.items()}
        return {
            "keys": keys,
            "has": {name: bits for name, (_, bits) in self._known.items()},
            "given": self._given,
            "events": self._events,
            "shares": {name: [list(pair) for pair in found] for name, found in self._shares.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._known = {name: (key, state["has"][name]) for name, key in state["keys"].items()}
        self._given, self._events = state["given"], state["events"]
        self._shares = {name: [(int(i), float(s)) for i, s in found] for name, found in state["shares"].items()}


def _agreement(then_key: Tensor, then: Tensor, key: Tensor, has: Tensor) -> Tensor:
    """Correlation of who had a feature with who has each of those found, over the samples of both events, `[m]`."""
    at = torch.searchsorted(key, then_key).clamp_max(len(key) - 1)
    shared = key[at] == then_key
    if int(shared.sum()) < MIN_SHARED:
        return torch.zeros(has.shape[1], dtype=torch.float64)
    a, b = then[shared].double(), has[at[shared]].double()
    a, b = a - a.mean(), b - b.mean(0)
    return (a @ b) / (a.norm() * b.norm(dim=0)).clamp_min(1e-300)
