"""Rows of a probe set as they come in, batch by batch, and the statistics they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.coding import is_discrete
from lightning_interp.functional.outputs import explain_output
from lightning_interp.functional.sampling import digest
from lightning_interp.functional.table import Table, table
from lightning_interp.metrics.layer import LayerStatistics, LayerSummary, Membership, membership
from lightning_interp.metrics.table import OutputTable
from lightning_interp.processes import gathered


class Rows(NamedTuple):
    """What is kept of one batch.

    Attributes:
        values: raw values of the variables `[n, p]`.
        output: the raw output `[n]` or `[n, c]`.
        target: the task's label, or None.
        key: the samples' keys, int64 `[n]`.
        source: ids of shared sources, int64 `[n]`, or None.
        layers: {layer: pooled activations `[n, d]`}; a layer that did not run is missing.
        keep: which rows count: those with a label, and no padding, bool `[n]`.
        finite: whether output and activations are finite, a bool on the device. Both are read only when rows are summed: until
            then nothing waits for the device.
    """

    values: Tensor
    output: Tensor
    target: Tensor | None
    key: Tensor
    source: Tensor | None
    layers: Mapping[str, Tensor]
    keep: Tensor
    finite: Tensor

    def kept(self) -> Rows:
        """Only the rows that count."""
        if bool(self.keep.all()):
            return self

        def cut(t: Tensor | None) -> Any:
            return None if t is None else t[self.keep.to(t.device)]

        return self._replace(
            values=cut(self.values),
            output=cut(self.output),
            target=cut(self.target),
            key=cut(self.key),
            source=cut(self.source),
            layers={name: cut(h) for name, h in self.layers.items()},
            keep=cut(self.keep),
        )


def all_finite(output: Tensor, layers: Mapping[str, Tensor]) -> Tensor:
    """Whether everything is finite, a bool scalar on the device: nothing waits for it here."""
    found = [torch.isfinite(t).all() for t in (output, *layers.values())]
    return torch.stack([f.to(output.device) for f in found]).all() if len(found) > 1 else found[0]


class Collection:
    """The statistics of one probe set.

    Rows wait until there are `chunk` of them, so that a validation set of ordinary size is summed once, with all its values
    known; then only sums are kept.

    Args:
        kinds: the variables' kinds, "auto" where open.
        layers: names of the layers.
        chunk: rows to wait for, and single rows kept of each layer.
        seed: of the samples' random numbers.
    """

    def __init__(self, kinds: Sequence[str], layers: Sequence[str], chunk: int, seed: int) -> None:
        self.kinds = list(kinds)
        self.names = list(layers)
        self.chunk = chunk
        self.seed = seed
        self.task: str | None = None
        self.level_names: dict[int, dict[float, str]] = {}
        self._table = OutputTable(len(self.kinds))
        self._layers: dict[str, LayerStatistics] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._pending: list[Rows] = []
        self._waiting: list[Rows] = []  # in the table already, their activations not yet summed
        for metric in (self._table, *self._layers.values()):
            metric.reset()
        self.discrete: list[bool] | None = None
        self.not_finite = 0
        self._digest = 0

    def add(self, rows: Rows, window: int | None = None) -> None:
        """Take a batch in; with `window`, only the last so many batches count."""
        self._pending.append(rows)
        if window is not None:
            del self._pending[:-window]
        elif sum(len(r.values) for r in self._pending) >= self.chunk:
            self._tabulate()
            if self._waiting:
                self._sum_layers(self._provisional())

    def table(self) -> Table | None:
        """The outputs of all processes: a collective."""
        self._tabulate()
        self._table.update(None)
        return self._table.merged()

    def probe(self) -> str:
        """A hash of the samples of all processes: a collective."""
        return f"{sum(gathered(self._digest)) % 2**64:016x}"

    def summaries(self, discrete: Sequence[bool]) -> tuple[dict[str, LayerSummary], str | None]:
        """The layers' statistics of all processes: a collective.

        Args:
            discrete: which variables make groups, as decided from the whole table.

        Returns:
            {layer: its summary}, and why there are none where an early guess at a variable's kind was wrong.
        """
        self._sum_layers(list(discrete) if self.discrete is None else self.discrete)
        if any(guess is not None and list(guess) != list(discrete) for guess in gathered(self.discrete)):
            return {}, (
                "layer measures withheld: the first samples made a variable look of another kind than all of them do; "
                "give it a `kind`"
            )
        out = {}
        for name in self.names:
            found = self._metric(name, discrete).merged()  # also where no row is here: other processes may have some
            if found is not None:
                out[name] = found
        return out, None

    def _tabulate(self) -> None:
        usable = [r for r in self._pending if bool(r.finite)]
        self.not_finite += len(self._pending) - len(usable)
        self._pending = []
        usable = [r for r in (r.kept() for r in usable) if len(r.values)]
        if not usable:
            return
        raw = torch.cat([r.output.reshape(len(r.output), -1) for r in usable])
        known = all(r.target is not None for r in usable)
        target = torch.cat([r.target for r in usable if r.target is not None]) if known else None
        explained = explain_output(raw, target, self.task)
        self.task = explained.task
        source = None if usable[0].source is None else _joined([r.source for r in usable])
        values = torch.cat([r.values for r in usable])
        self._digest += int(digest(torch.cat([r.key for r in usable]).to(values.device), values))
        self._table.update(table(values, explained.output.to(values.device), source, explained.correct))
        self._waiting += usable

    def _provisional(self) -> list[bool]:
        if self.discrete is None:
            values = torch.cat([r.values for r in self._waiting])
            self.discrete = [is_discrete(kind, values[:, j], j in self.level_names) for j, kind in enumerate(self.kinds)]
        return self.discrete

    def _sum_layers(self, discrete: list[bool]) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self.discrete = discrete
        everywhere = self._places(waiting)  # the same for all layers that ran in every batch
        for name in self.names:
            ran = [r for r in waiting if name in r.layers]
            if not ran:
                continue
            metric = self._metric(name, discrete)
            places = everywhere if len(ran) == len(waiting) else self._places(ran)
            metric.update(torch.cat([r.layers[name] for r in ran]).to(places[0].device), *places)

    def _metric(self, name: str, discrete: Sequence[bool]) -> LayerStatistics:
        # Kept from event to event: making one costs more than summing a small layer.
        if name not in self._layers or self._layers[name].discrete != list(discrete):
            self._layers[name] = LayerStatistics(discrete, self.chunk, self.seed)
        return self._layers[name]

    def _places(self, rows: Sequence[Rows]) -> tuple[Tensor, Tensor, Tensor | None, Membership]:
        values, key = torch.cat([r.values for r in rows]), torch.cat([r.key for r in rows])
        source = None if rows[0].source is None else _joined([r.source for r in rows])
        return values, key, source, membership(values, key, source, self.discrete or [], self.seed)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])
