"""`LayerStatistics`: what is kept of one layer's activations, as a metric that merges over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_interp.functional.moments import Moments, coarsen, moments
from lightning_interp.functional.sampling import uniform
from lightning_interp.functional.unique import unique_rows
from lightning_interp.functional.weights import MAX_CELLS
from lightning_interp.processes import states_of_all

CONTROLS = 5
BINS = 32
MAX_GROUPS = MAX_CELLS  # over these, weights are natural, and single levels are all that they need
MAX_CROSSED = 4096  # rows of cross products of continuous variables that the cells may take, as many as single rows are kept
WIDE = 2048  # units up to which products of all pairs of units are kept, 32 MiB in each fold
FOLD, KEPT, CONTROL = 0, 1, 2  # streams of the sample's random numbers
_ANY = float("nan")
_STATES = ("fold0", "fold1", "cross0", "cross1", "gram0", "gram1", "rows")


class LayerSummary(NamedTuple):
    """One layer's statistics over the probe set.

    Attributes:
        folds: moments of the two folds; their groups are described by `keys`.
        keys: per fold, each group's values `[g, p + 2]`: raw values of the discrete variables (NaN: any), then the index of a
            control (NaN: none) and its bin. Row 0 is NaN throughout: the group of all rows.
        kept_second: whether each kept row is in the second fold, bool `[k]`.
        kept_source: ids of shared sources, int64 `[k]`; all zero if none was named.
        kept_bins: their bins in each control, int64 `[k, CONTROLS]`.
        kept_values: their raw values `[k, p]`.
        kept: their activations `[k, d]`.
    """

    folds: tuple[Moments, Moments]
    keys: tuple[Tensor, Tensor]
    kept_second: Tensor
    kept_source: Tensor
    kept_bins: Tensor
    kept_values: Tensor
    kept: Tensor

    @property
    def wide(self) -> bool:
        """Whether the layer has too many units for products of all pairs: what needs them is had from the kept rows."""
        return self.folds[0].gram.ndim == 1

    def total(self, discrete: Sequence[bool]) -> tuple[Tensor, Moments]:
        """Keys and moments of both folds together."""
        return _merge((self.keys[0], self.folds[0]), (self.keys[1], self.folds[1]), discrete)


class Membership(NamedTuple):
    """Where rows belong, the same for every layer that saw them.

    Attributes:
        second: whether each row is in the second fold, bool `[n]`.
        rows: per fold, its rows, int64 `[m]`.
        keys: per fold, the groups' keys `[g, p + 2]`.
        member: per fold, the groups of each of its rows besides group 0, int64 `[m, k]`.
        crossed: per fold, the number of groups, the first, for which cross products are kept: all rows, and the cells.
        bins: bins in each control, int64 `[n, CONTROLS]`.
        chance: random number by which rows are kept, float64 `[n]`.
        order: the rows by that number, int64 `[n]`.
    """

    second: Tensor
    rows: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    member: tuple[Tensor, Tensor]
    crossed: tuple[int, int]
    bins: Tensor
    chance: Tensor
    order: Tensor


def membership(values: Tensor, key: Tensor, source: Tensor | None, discrete: Sequence[bool], seed: int) -> Membership:
    """Assign rows to folds, groups, control bins, and the order in which they are kept.

    Args:
        values: raw values of the variables `[n, p]`.
        key: the samples' keys, int64 `[n]`.
        source: ids of shared sources, int64 `[n]`, or None.
        discrete: which variables make groups.
        seed: of the samples' random numbers.
    """
    second = uniform(key if source is None else source, seed, FOLD) >= 0.5
    bins = torch.stack([uniform(key, seed, CONTROL + r) * BINS for r in range(CONTROLS)], dim=1).long()
    rows = (~second).nonzero().flatten(), second.nonzero().flatten()
    (keys_a, member_a, a), (keys_b, member_b, b) = (_groups(values[mine], bins[mine], discrete) for mine in rows)
    chance = uniform(key, seed, KEPT)
    if source is not None:  # whole sources are kept: what is left of one would hide the noise that its samples share
        chance = ((uniform(source, seed, KEPT) * 2**26).floor() + chance) * 2.0**-26
    return Membership(second, rows, (keys_a, keys_b), (member_a, member_b), (a, b), bins, chance, chance.argsort(stable=True))


def most_cells(discrete: Sequence[bool]) -> int:
    """How many joint cells are kept: fewer where each has the cross products of many continuous variables."""
    return min(MAX_GROUPS, max(2, MAX_CROSSED // (1 + len(discrete) - sum(discrete))))


def _groups(values: Tensor, bins: Tensor, discrete: Sequence[bool]) -> tuple[Tensor, Tensor, int]:
    p, crossed = len(discrete), 1
    named = torch.where(torch.tensor(discrete, device=values.device), values, _ANY)
    patterns = [unique_rows(named)] if any(discrete) and len(values) else []
    if patterns and len(patterns[0][0]) > most_cells(discrete):
        patterns = _all_levels(values, [j for j in range(p) if discrete[j]])
    elif patterns:
        crossed += len(patterns[0][0])
    keys = [torch.full((1, p + 2), _ANY, dtype=torch.float64, device=values.device)]
    member, start = [], 1
    for found, index in patterns:
        keys.append(torch.cat([found, torch.full_like(found[:, :1].expand(-1, 2), _ANY)], dim=1))
        member.append(index + start)
        start += len(found)
    keys.append(_control_keys(p, values.device))
    member += [bins[:, r] + start + r * BINS for r in range(CONTROLS)]
    return torch.cat(keys), torch.stack(member, dim=1), crossed


def _all_levels(values: Tensor, columns: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The levels of each of some variables as keys `[levels, p]`, and each row's, int64 `[n]`."""
    bits = values[:, columns].contiguous().view(torch.int64)
    low, high = bits.amin(0), bits.amax(0)
    second = bits == high
    two = ((low != high) & (second | (bits == low)).all(0)).tolist()  # as most variables are: all of them in one go
    at_high = second.T.long()
    out = []
    for i, j in enumerate(columns):
        if two[i]:
            found, index = torch.stack([low[i], high[i]]).view(torch.float64), at_high[i]
        else:
            rows, index = unique_rows(values[:, j : j + 1])
            found = rows[:, 0]
        keys = torch.full((len(found), values.shape[1]), _ANY, dtype=torch.float64, device=values.device)
        keys[:, j] = found
        out.append((keys, index))
    return out


class LayerStatistics(Metric):
    """Accumulates grouped `Moments` of a layer in two folds, and at most `max_kept` single rows.

    Fold, kept rows and control bins belong to the sample (its key), so they are the same on any number of ranks. Samples that
    share a source share its fold: a probe must not be tested on another picture of what it was fitted on.

    Args:
        discrete: for each variable whether its values make groups; the others enter as continuous columns.
        max_kept: single rows kept, those with the smallest random number.
        seed: seed of the samples' random numbers.
    """

    full_state_update = False
    fold0: list[Tensor]
    fold1: list[Tensor]
    cross0: list[Tensor]
    cross1: list[Tensor]
    gram0: list[Tensor]
    gram1: list[Tensor]
    rows: list[Tensor]

    def __init__(self, discrete: Sequence[bool], max_kept: int = 4096, seed: int = 0) -> None:
        super().__init__()
        self.discrete = list(discrete)
        self.max_kept = max_kept
        self.seed = seed
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx=_as_is)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for name in _STATES:
            setattr(self, name, [torch.zeros(0, 0, dtype=torch.float64)])

    @property
    def _continuous(self) -> list[int]:
        return [j for j, d in enumerate(self.discrete) if not d]

    def update(
        self, h: Tensor, values: Tensor, key: Tensor, source: Tensor | None = None, member: Membership | None = None
    ) -> None:
        """Add rows.

        Args:
            h: pooled activations `[n, d]`.
            values: raw values of the variables `[n, p]`.
            key: the samples' keys, int64 `[n]`.
            source: ids of shared sources, int64 `[n]`, or None.
            member: where the rows belong, if it is known already from another layer.
        """
        if not len(h):
            return
        m = membership(values, key, source, self.discrete, self.seed) if member is None else member
        x = values[:, self._continuous]
        for fold, mine in enumerate(m.rows):
            groups, pairs = len(m.keys[fold]), h.shape[1] <= WIDE
            fresh = (m.keys[fold], moments(h[mine], x[mine], m.member[fold], groups, m.crossed[fold], pairs))
            held = self._held(fold)
            keys, merged = fresh if held is None else _merge(held, fresh, self.discrete)
            for name, part in zip(("fold", "cross", "gram"), _pack(keys, merged)):
                setattr(self, f"{name}{fold}", [part])
        # The bits of the source travel as a float64 and come back untouched.
        bits = (torch.zeros_like(key) if source is None else source).view(torch.float64)
        own = torch.cat([m.chance[:, None], m.second.double()[:, None], bits[:, None], m.bins.double(), values], dim=1)
        first, k = m.order[: self.max_kept], own.shape[1]
        rows = torch.empty(len(first), k + h.shape[1], dtype=torch.float64, device=h.device)
        rows[:, :k], rows[:, k:] = own[first], h[first]
        self.rows = [self._smallest([*(r for r in self.rows if r.numel()), rows])]

    def compute(self) -> LayerSummary | None:
        """The statistics of every rank's rows on the CPU; None if there is none."""
        return self._merged()

    def merged(self) -> LayerSummary | None:
        """`compute` without torchmetrics' own ending, which makes tensors of one element scalars."""
        with states_of_all(self, _STATES):
            return self._merged()

    def _merged(self) -> LayerSummary | None:
        folds = []
        for fold in (0, 1):
            held = self._held(fold)
            if held is None:
                return None
            folds.append((held[0].cpu(), Moments(*(part.cpu() for part in held[1]))))
        rows = self._smallest([r.cpu() for r in self.rows if r.numel()])
        p = len(self.discrete)
        (keys_a, a), (keys_b, b) = folds
        sizes = [1, 1, 1, CONTROLS, p, rows.shape[1] - p - CONTROLS - 3]
        _, second, source, bins, values, kept = rows.split(sizes, dim=1)
        return LayerSummary(
            (a, b),
            (keys_a, keys_b),
            second[:, 0] > 0,
            source.contiguous().view(torch.int64)[:, 0],
            bins.long(),
            values.contiguous(),
            kept,
        )

    def _smallest(self, parts: Sequence[Tensor]) -> Tensor:
        # Ordered always, so that what is computed from the kept rows has the same bits on any number of ranks.
        if len(parts) == 1:
            return parts[0]
        rows = torch.cat(list(parts))
        return rows[rows[:, 0].argsort(stable=True)[: self.max_kept]]

    def _held(self, fold: int) -> tuple[Tensor, Moments] | None:
        # One entry, except between sync and unsync: then one per rank.
        held: tuple[Tensor, Moments] | None = None
        q, p = len(self._continuous), len(self.discrete)
        for packed, crosses, gram in zip(*(getattr(self, f"{name}{fold}") for name in ("fold", "cross", "gram"))):
            if packed.numel():
                part = _unpack(packed, crosses, gram, p, q)
                held = part if held is None else _merge(held, part, self.discrete)
        return held


def _as_is(parts: list[Tensor]) -> list[Tensor]:
    return parts


def _control_keys(p: int, device: torch.device) -> Tensor:
    r = torch.arange(CONTROLS, dtype=torch.float64, device=device).repeat_interleave(BINS)
    b = torch.arange(BINS, dtype=torch.float64, device=device).repeat(CONTROLS)
    return torch.cat([torch.full((len(r), p), _ANY, dtype=torch.float64, device=device), r[:, None], b[:, None]], 1)


def is_cell(keys: Tensor, discrete: Sequence[bool]) -> Tensor:
    """Which groups are cells: a value for every discrete variable, and no control. With none discrete, no group is."""
    named = [j for j, d in enumerate(discrete) if d]
    if not named:
        return torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    return ~keys[:, named].isnan().any(1) & keys[:, len(discrete)].isnan()


def _merge(a: tuple[Tensor, Moments], b: tuple[Tensor, Moments], discrete: Sequence[bool]) -> tuple[Tensor, Moments]:
    if a[0].shape == b[0].shape and torch.equal(a[0].view(torch.int64), b[0].view(torch.int64)):
        return a[0], a[1] + b[1]
    if any(discrete):
        cells = len(unique_rows(torch.cat([k[is_cell(k, discrete)] for k, _ in (a, b)]))[0])
        by_level = any(len(m.cross) == 1 and len(k) > 1 + CONTROLS * BINS for k, m in (a, b))
        if cells > most_cells(discrete) or by_level:
            a, b = (_by_level(*side, discrete) for side in (a, b))
    keys, index = unique_rows(torch.cat([a[0], b[0]]))
    # Row 0 must stay the group of all rows, and those with cross products the first: order the keys by where they first came.
    came = torch.cat([torch.arange(len(k), device=k.device) + len(index) * (_plain(k, m)) for k, m in (a, b)])
    came[len(a[0]) :] += len(a[0])
    first = torch.full((len(keys),), 3 * len(index), dtype=torch.int64, device=keys.device)
    first.scatter_reduce_(0, index, came, "amin")
    order = first.argsort()
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=keys.device))
    at_a, at_b = place[index[: len(a[0])]], place[index[len(a[0]) :]]
    crossed = int((first < len(index)).sum())
    sides = []
    for at, (_, m) in ((at_a, a), (at_b, b)):
        pick = torch.full((len(keys),), -1, dtype=torch.int64, device=keys.device)
        pick[at] = torch.arange(len(at), device=keys.device)
        sides.append(m.select(pick, crossed))
    return keys[order], sides[0] + sides[1]


def _plain(keys: Tensor, m: Moments) -> Tensor:
    """Which groups have no cross products."""
    return torch.arange(len(keys), device=keys.device) >= len(m.cross)


def _by_level(keys: Tensor, m: Moments, discrete: Sequence[bool]) -> tuple[Tensor, Moments]:
    """Trade joint cells for the levels of each variable on its own: exact, and all that natural weights need."""
    if len(m.cross) == 1:
        return keys, m
    cell = slice(1, len(m.cross))
    out_keys, parts = [keys[:1]], [m.select(torch.tensor([0], device=keys.device))]
    cells = Moments(m.count[cell], m.mean[cell], m.cross[cell, :0], m.gram)
    for j in (j for j, d in enumerate(discrete) if d):
        ((found, index),) = _all_levels(keys[cell, :-2], [j])
        out_keys.append(torch.cat([found, torch.full_like(found[:, :1].expand(-1, 2), _ANY)], dim=1))
        parts.append(coarsen(cells, index, len(found)))
    out_keys.append(keys[len(m.cross) :])
    parts.append(m.select(torch.arange(len(m.cross), len(keys), device=keys.device), 0))
    count, mean = (torch.cat(same) for same in zip(*(part[:2] for part in parts)))
    return torch.cat(out_keys), Moments(count, mean, m.cross[:1], m.gram)


def _pack(keys: Tensor, m: Moments) -> tuple[Tensor, Tensor, Tensor]:
    # Two-dimensional and never empty, so that they can be gathered: cross products come behind a column of their counts.
    packed = torch.cat([keys, m.count[:, None], m.mean], dim=1)
    crosses = torch.cat([m.count[: len(m.cross), None], m.cross.flatten(1)], dim=1)
    return packed, crosses, m.gram if m.gram.ndim == 2 else m.gram.unsqueeze(0)


def _unpack(packed: Tensor, crosses: Tensor, gram: Tensor, p: int, q: int) -> tuple[Tensor, Moments]:
    y = q + gram.shape[1]
    keys, count, mean = packed.split([p + 2, 1, y], dim=1)
    cross = crosses[:, 1:].reshape(len(crosses), q, y)
    gram = gram[0] if len(gram) < gram.shape[1] else gram
    return keys.contiguous(), Moments(count[:, 0].contiguous(), mean.contiguous(), cross, gram)
