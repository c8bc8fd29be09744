"""Dictionaries: ways to find features in an activation that nobody has named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_interp.errors import InterpError, NearestArgument, at_least
from lightning_interp.functional.splits import LEFT, Splits, beside, clarity, distinct, readable_splits, split_apart
from lightning_interp.functional.topk import TopKCode, train_top_k

SAME = 0.95  # absolute correlation of sides, over which two splits are one whatever is held fixed
VARIES = 1e-12  # variance of a principal component, in units of the largest, over which it counts as one


class Code(Protocol):
    """Features that were found, and how they are read from an activation."""

    @property
    def threshold(self) -> Tensor:
        """The code over which a sample counts as having the feature, `[m]`."""

    def codes(self, h: Tensor) -> Tensor:
        """Codes `[n, m]` of activations `[n, d]`, float64."""

    def select(self, index: Tensor) -> Code:
        """Some of the features."""


class Dictionary(NearestArgument, ABC):
    """Finds features of an activation; use `SplitDictionary` or `TopKDictionary`."""

    @abstractmethod
    def fit(self, h: Tensor, starts: Tensor, named: Tensor, seed: int) -> Code:
        """Find features.

        Args:
            h: activations `[n, d]`.
            starts: directions `[d, s]` that are worth a try: what matters to the output.
            named: the named variables, coded, `[n, q]`: what they are already is no feature.
            seed: of what is drawn.

        Returns:
            The features, most clearly seen first; there may be none.
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
    its contribution is counted. A split that is a named variable's is left out, and two splits are alike if they are so among
    samples that have the named variables in common: else a feature would be hidden by the named variable that it travels with.
    Of two alike the clearer is kept, also where the other matters more to the output: what is lost so is counted as unnamed.
    A feature that goes with the class on nearly all samples that are looked at cannot be told from the class.

    Args:
        components: principal components to start from; twice as many random mixtures of them are started from too.
        ridge: of the probes, in units of the mean eigenvalue, over 0.
        alike: absolute correlation, the named variables held fixed, over which two splits count as one, 0…1.

    Raises:
        InterpError: an argument is not usable.
    """

    def __init__(self, components: int = 10, ridge: float = 1e-2, alike: float = 0.3) -> None:
        self.components = at_least(components, 1, "components")
        self.ridge = _positive(ridge, "ridge")
        if not 0 <= alike <= 1:
            raise InterpError(f"`alike` expects a correlation, 0…1, got {alike!r}.")
        self.alike = alike
        self._read: Tensor | None = None

    def fit(self, h: Tensor, starts: Tensor, named: Tensor, seed: int) -> Code:
        """Splits from principal components, random mixtures of them, `starts`, and the splits of the last fit."""
        h = h.double()
        main, white = _principal(h - h.mean(0), self.components)
        mixed = white @ torch.randn(main.shape[1], 2 * self.components, generator=_generator(seed), dtype=h.dtype)
        last = self._read if self._read is not None and len(self._read) == h.shape[1] else h.new_zeros(h.shape[1], 0)
        found = readable_splits(h, torch.cat([last, starts.double(), main, mixed], 1), self.ridge)
        codes = found.codes(h)
        sides = codes > found.threshold
        order = clarity(codes, found.threshold).argsort(descending=True, stable=True)
        left = beside(sides, named)
        new = split_apart(sides) & (left.std(0) > LEFT * sides.double().std(0))
        order = order[new[order]]
        order = torch.tensor(distinct(sides, order, len(order), SAME), dtype=torch.int64)
        kept = torch.tensor(distinct(left, order, len(order), self.alike), dtype=torch.int64)
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
    feature into several atoms (best of the top three: correlation .51–.91, where splits have .98): docs/measured.md.

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
        if at_least(k, 1, "k") > atoms:
            raise InterpError(f"`k` expects {atoms} at most, the number of `atoms`, got {k}.")
        self.k = k
        self.steps = at_least(steps, 1, "steps")
        self.lr = _positive(lr, "lr")
        self._last: TopKCode | None = None

    def fit(self, h: Tensor, starts: Tensor, named: Tensor, seed: int) -> Code:
        """Train on; `starts` and `named` are of no use to it. Atoms that no sample has, or all have alike, are no features."""
        self._last = train_top_k(h, self.atoms, self.k, self.steps, self.lr, _generator(seed), self._last)
        codes = self._last.codes(h)
        order = (codes > 0).double().sum(0).argsort(descending=True, stable=True)
        return self._last.select(order[(codes > self._last.threshold).any(0)[order]])

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


def _principal(centred: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Directions `[d, q]` of the largest principal components, and the same scaled so that each reads with one variance."""
    wide = centred.shape[1] > len(centred)
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = values.flip(0)[:most], vectors.flip(1)[:, :most]
    kept = values > VARIES * values[0]
    size = values[kept].sqrt()
    main = centred.T @ vectors[:, kept] / size if wide else vectors[:, kept]
    return main, main / size


def _positive(value: float, argument: str) -> float:
    if not value > 0:
        raise InterpError(f"`{argument}` expects a number over 0, got {value!r}.")
    return value


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
