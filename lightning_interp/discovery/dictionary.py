"""Dictionaries: ways to find features in an activation that nobody has named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_interp.functional.splits import Splits, clarity, distinct, readable_splits
from lightning_interp.functional.topk import TopKCode, train_top_k
from lightning_interp.probe import at_least


class Code(Protocol):
    """Features that were found, and how they are read from an activation."""

    @property
    def threshold(self) -> Tensor:
        """The code over which a sample counts as having the feature, `[m]`."""

    def codes(self, h: Tensor) -> Tensor:
        """Codes `[n, m]` of activations `[n, d]`, float64."""

    def select(self, index: Tensor) -> Code:
        """Some of the features."""


class Dictionary(ABC):
    """Finds features of an activation; use `SplitDictionary` or `TopKDictionary`."""

    @abstractmethod
    def fit(self, h: Tensor, starts: Tensor, seed: int) -> Code:
        """Find features.

        Args:
            h: activations `[n, d]`.
            starts: directions `[d, s]` that are worth a try: what matters to the output.
            seed: of what is drawn.

        Returns:
            The features, most clearly seen first, no two of them alike.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: where the next fit begins."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""


class SplitDictionary(Dictionary):
    """Features that a sample has or has not: two-way splits which the layer itself reads linearly, see `functional.splits`.

    The default. Found in the activation as it is, not in what the named variables leave of it: a feature that travels with a
    named variable is mostly gone from that (at an agreement of 85 % the best direction in it correlates .75–.89 with the
    feature, in the whole activation 1.0); what a feature has in common with them is taken out of its code afterwards, before
    its contribution is counted.

    Args:
        components: principal components to start from; twice as many random mixtures of them are started from too.
        ridge: of the probes, in units of the mean eigenvalue.
        alike: absolute correlation over which two splits count as one, 0…1.

    Raises:
        InterpError: an argument is not usable.
    """

    def __init__(self, components: int = 10, ridge: float = 1e-2, alike: float = 0.3) -> None:
        self.components = at_least(components, 1, "components")
        self.ridge = ridge
        self.alike = alike
        self._read: Tensor | None = None

    def fit(self, h: Tensor, starts: Tensor, seed: int) -> Code:
        """Splits from principal components, random mixtures of them, `starts`, and the splits of the last fit."""
        h = h.double()
        centred = h - h.mean(0)
        _, s, v = torch.linalg.svd(centred, full_matrices=False)
        main = v[: self.components].T
        white = main / s[: main.shape[1]].clamp_min(1e-9 * s[0])
        mixed = white @ torch.randn(main.shape[1], 2 * self.components, generator=_generator(seed), dtype=h.dtype)
        last = self._read if self._read is not None and len(self._read) == h.shape[1] else h.new_zeros(h.shape[1], 0)
        found = readable_splits(h, torch.cat([last, starts.double(), main, mixed], 1), self.ridge)
        codes = found.codes(h)
        order = clarity(codes, found.threshold).argsort(descending=True, stable=True)
        kept = torch.tensor(distinct(codes > found.threshold, order, found.read.shape[1], self.alike))
        out = _rarer(found.select(kept), h)
        self._read = out.read
        return out

    def state_dict(self) -> dict[str, Any]:
        """The directions of the last fit."""
        return {"read": self._read}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._read = state["read"]


class TopKDictionary(Dictionary):
    """A top-k sparse autoencoder (Makhzani & Frey 2013; Gao et al. 2024), trained on at every event from where it stood.

    For layers that hold many more features than samples can be split by. On the data sets tried here it splits one binary
    feature into several atoms; see the table in the README.

    Args:
        atoms: features to learn.
        k: how many of them a sample may have at once.
        steps: of Adam, at each event.
        lr: its learning rate.

    Raises:
        InterpError: an argument is not usable.
    """

    def __init__(self, atoms: int = 32, k: int = 4, steps: int = 500, lr: float = 3e-3) -> None:
        self.atoms = at_least(atoms, 1, "atoms")
        self.k = min(at_least(k, 1, "k"), atoms)
        self.steps = at_least(steps, 1, "steps")
        self.lr = lr
        self._last: TopKCode | None = None

    def fit(self, h: Tensor, starts: Tensor, seed: int) -> Code:
        """Train on; `starts` are of no use to it."""
        self._last = train_top_k(h, self.atoms, self.k, self.steps, self.lr, _generator(seed), self._last)
        return self._last.select((self._last.codes(h) > 0).double().sum(0).argsort(descending=True, stable=True))

    def state_dict(self) -> dict[str, Any]:
        """The autoencoder's weights."""
        return {"last": None if self._last is None else dict(self._last._asdict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._last = None if state["last"] is None else TopKCode(**state["last"])


def code_state(code: Code) -> dict[str, Any]:
    """A code as plain types and tensors."""
    return {"of": type(code).__name__, **code._asdict()}  # type: ignore[attr-defined]


def code_of(state: Mapping[str, Any]) -> Code:
    """The code of `code_state`."""
    kinds: dict[str, Any] = {"Splits": Splits, "TopKCode": TopKCode}
    return kinds[state["of"]](**{name: value for name, value in state.items() if name != "of"})


def _rarer(found: Splits, h: Tensor) -> Splits:
    """The splits turned so that the smaller side is the one that has the feature."""
    turn = (found.codes(h) > found.threshold).double().mean(0) > 0.5
    sign = torch.where(turn, -1.0, 1.0).double()
    shift = turn.double()
    return Splits(found.read * sign, shift + found.bias * sign, shift + found.threshold * sign)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
