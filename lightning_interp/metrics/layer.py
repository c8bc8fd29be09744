"""`LayerStatistics`: what is kept of one layer's activations, as a metric that merges over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_interp.functional.moments import Moments, coarsen, moments
from lightning_interp.functional.sampling import uniform

CONTROLS = 5
BINS = 32
MAX_GROUPS = 256
FOLD, KEPT, CONTROL = 0, 1, 2  # streams of the sample's random numbers
_ANY = float("nan")


class LayerSummary(NamedTuple):
    """One layer's statistics over the probe set.

    Attributes:
        folds: moments of the two folds; their groups are described by `keys`.
        keys: per fold, each group's values `[g, p + 2]`: raw values of the discrete variables (NaN: any), then the index of a
            control (NaN: none) and its bin. Row 0 is NaN throughout: the group of all rows.
        kept_second: whether each kept row is in the second fold, bool `[k]`.
        kept_values: their raw values `[k, p]`.
        kept: their activations `[k, d]`.
    """

    folds: tuple[Moments, Moments]
    keys: tuple[Tensor, Tensor]
    kept_second: Tensor
    kept_values: Tensor
    kept: Tensor

    def total(self, discrete: Sequence[bool]) -> tuple[Tensor, Moments]:
        """Keys and moments of both folds together."""
        return _merge((self.keys[0], self.folds[0]), (self.keys[1], self.folds[1]), discrete)


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
    gram0: list[Tensor]
    gram1: list[Tensor]
    rows: list[Tensor]

    def __init__(self, discrete: Sequence[bool], max_kept: int = 4096, seed: int = 0) -> None:
        super().__init__()
        self.discrete = list(discrete)
        self.max_kept = max_kept
        self.seed = seed
        for name in ("fold0", "fold1", "gram0", "gram1", "rows"):
            self.add_state(name, default=[], dist_reduce_fx=_as_is)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for name in ("fold0", "fold1", "gram0", "gram1", "rows"):
            setattr(self, name, [torch.zeros(0, 0, dtype=torch.float64)])

    @property
    def _continuous(self) -> list[int]:
        return [j for j, d in enumerate(self.discrete) if not d]

    def update(self, h: Tensor, values: Tensor, key: Tensor, source: Tensor | None = None) -> None:
        """Add rows.

        Args:
            h: pooled activations `[n, d]`.
            values: raw values of the variables `[n, p]`.
            key: the samples' keys, int64 `[n]`.
            source: ids of shared sources, int64 `[n]`, or None.
        """
        if not len(h):
            return
        second = uniform(key if source is None else source, self.seed, FOLD) >= 0.5
        bins = torch.stack([uniform(key, self.seed, CONTROL + r) * BINS for r in range(CONTROLS)], dim=1).floor()
        for fold in (0, 1):
            mine = second == bool(fold)
            keys, m = self._grouped(h[mine], values[mine], bins[mine])
            held = self._held(fold)
            keys, m = (keys, m) if held is None else _merge(held, (keys, m), self.discrete)
            setattr(self, f"fold{fold}", [_pack(keys, m)])
            setattr(self, f"gram{fold}", [m.gram])
        fresh = torch.cat([key.view(torch.float64)[:, None], second.double()[:, None], values, h.double()], dim=1)
        self.rows = [self._smallest(torch.cat([r for r in self.rows if r.numel()] + [fresh]))]

    def compute(self) -> LayerSummary | None:
        """The statistics of every rank's rows on the CPU; None if there is none."""
        folds = []
        for fold in (0, 1):
            held = self._held(fold)
            if held is None:
                return None
            folds.append((held[0].cpu(), Moments(*(part.cpu() for part in held[1]))))
        rows = self._smallest(torch.cat([r.cpu() for r in self.rows if r.numel()]))
        p = len(self.discrete)
        (keys_a, a), (keys_b, b) = folds
        return LayerSummary(
            (a, b), (keys_a, keys_b), rows[:, 1] > 0, rows[:, 2 : 2 + p].contiguous(), rows[:, 2 + p :].contiguous()
        )

    def _smallest(self, rows: Tensor) -> Tensor:
        # Ordered always, so that what is computed from the kept rows has the same bits on any number of ranks.
        chance = uniform(rows[:, 0].contiguous().view(torch.int64), self.seed, KEPT)
        return rows[chance.argsort(stable=True)[: self.max_kept]]

    def _grouped(self, h: Tensor, values: Tensor, bins: Tensor) -> tuple[Tensor, Moments]:
        p = len(self.discrete)
        named = torch.where(torch.tensor(self.discrete, device=values.device), values, _ANY)
        patterns = [_unique(named)] if any(self.discrete) else []
        if patterns and len(patterns[0][0]) > MAX_GROUPS:
            patterns = [_unique(_only(named, j)) for j in range(p) if self.discrete[j]]
        keys = [torch.full((1, p + 2), _ANY, dtype=torch.float64, device=h.device)]
        member, start = [], 1
        for found, index in patterns:
            keys.append(torch.cat([found, torch.full_like(found[:, :1].expand(-1, 2), _ANY)], dim=1))
            member.append(index + start)
            start += len(found)
        keys.append(_control_keys(p, h.device))
        member += [bins[:, r].long() + start + r * BINS for r in range(CONTROLS)]
        x = values[:, self._continuous]
        return torch.cat(keys), moments(h, x, torch.stack(member, dim=1), start + CONTROLS * BINS)

    def _held(self, fold: int) -> tuple[Tensor, Moments] | None:
        # One entry, except between sync and unsync: then one per rank.
        held: tuple[Tensor, Moments] | None = None
        q, p = len(self._continuous), len(self.discrete)
        for packed, gram in zip(getattr(self, f"fold{fold}"), getattr(self, f"gram{fold}")):
            if packed.numel():
                part = _unpack(packed, gram, p, q)
                held = part if held is None else _merge(held, part, self.discrete)
        return held


def _as_is(parts: list[Tensor]) -> list[Tensor]:
    return parts


def _only(values: Tensor, column: int) -> Tensor:
    out = torch.full_like(values, _ANY)
    out[:, column] = values[:, column]
    return out


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    # By bits: NaN stands for "any" and must equal itself.
    found, index = torch.unique(keys.contiguous().view(torch.int64), dim=0, return_inverse=True)
    return found.view(torch.float64), index


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
    if sum(discrete) > 1:
        cells = len(_unique(torch.cat([k[is_cell(k, discrete)] for k, _ in (a, b)]))[0])
        by_level = any(not is_cell(k, discrete).any() and len(k) > 1 + CONTROLS * BINS for k, _ in (a, b))
        if cells > MAX_GROUPS or by_level:
            a, b = (_by_level(*side, discrete) for side in (a, b))
    keys, index = _unique(torch.cat([a[0], b[0]]))
    # Row 0 must stay the group of all rows: order the keys by where they first came.
    first = torch.full((len(keys),), len(index), dtype=torch.int64, device=keys.device)
    first.scatter_reduce_(0, index, torch.arange(len(index), device=keys.device), "amin")
    order = first.argsort()
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=keys.device))
    at_a, at_b = place[index[: len(a[0])]], place[index[len(a[0]) :]]
    sides = []
    for at, (_, m) in ((at_a, a), (at_b, b)):
        pick = torch.full((len(keys),), -1, dtype=torch.int64, device=keys.device)
        pick[at] = torch.arange(len(at), device=keys.device)
        sides.append(m.select(pick))
    return keys[order], sides[0] + sides[1]


def _by_level(keys: Tensor, m: Moments, discrete: Sequence[bool]) -> tuple[Tensor, Moments]:
    """Trade joint cells for the levels of each variable on its own: exact, and all that natural weights need."""
    cell = is_cell(keys, discrete)
    if not cell.any():
        return keys, m
    rest = (~cell).nonzero().flatten()
    out_keys, parts = [keys[rest[:1]]], [m.select(rest[:1])]
    cells = m.select(cell.nonzero().flatten())
    for j in (j for j, d in enumerate(discrete) if d):
        found, index = _unique(_only(keys[cell], j))
        out_keys.append(found)
        parts.append(coarsen(cells, index, len(found)))
    out_keys.append(keys[rest[1:]])
    parts.append(m.select(rest[1:]))
    count, mean, cross = (torch.cat(same) for same in zip(*(part[:3] for part in parts)))
    return torch.cat(out_keys), Moments(count, mean, cross, m.gram)


def _pack(keys: Tensor, m: Moments) -> Tensor:
    return torch.cat([keys, m.count[:, None], m.mean, m.cross.flatten(1)], dim=1)


def _unpack(packed: Tensor, gram: Tensor, p: int, q: int) -> tuple[Tensor, Moments]:
    y = q + len(gram)
    keys, count, mean, cross = packed.split([p + 2, 1, y, q * y], dim=1)
    return keys.contiguous(), Moments(count[:, 0].contiguous(), mean.contiguous(), cross.reshape(len(packed), q, y), gram)
