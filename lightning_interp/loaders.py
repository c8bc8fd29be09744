"""A probe set's loader, shared out over the processes, drawing nothing from the run's random streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_interp.activations.quiet import random_state
from lightning_interp.errors import ProbeSetError
from lightning_interp.processes import world


def probe_loader(data: Any) -> Iterable[Any]:
    """This process's share of a probe set.

    A `DataLoader` over a map-style data set is rebuilt with the indices rank, rank + world, …, in order: no sample twice, none
    padded. Anything else is iterated by all, each taking every world-th batch.

    Args:
        data: a `DataLoader`, a `Dataset`, or any iterable of batches.

    Raises:
        ProbeSetError: `data` is none of these.
    """
    rank, size = world()
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=64)
    if not isinstance(data, DataLoader):
        if not isinstance(data, Iterable) or isinstance(data, (str, dict)):
            raise ProbeSetError(f"`data` expects a DataLoader, a Dataset or batches, got {type(data).__name__}.")
        return _Share(data, rank, size)
    if isinstance(data.dataset, IterableDataset) or data.batch_size is None:
        return _Share(data, rank, size)
    indices = _indices(data)
    return DataLoader(
        data.dataset,
        batch_size=data.batch_size,
        sampler=indices[rank::size],
        num_workers=data.num_workers,
        collate_fn=data.collate_fn,
        pin_memory=data.pin_memory,
        generator=torch.Generator().manual_seed(0),  # a loader without its own draws a seed from the global stream
        multiprocessing_context=data.multiprocessing_context,
    )


def _indices(loader: DataLoader[Any]) -> list[int]:
    total = len(loader.dataset)  # type: ignore[arg-type]
    sampler = loader.sampler
    if isinstance(sampler, (SequentialSampler, DistributedSampler)) or not hasattr(sampler, "__len__"):
        return list(range(total))
    if len(sampler) >= total:  # type: ignore[arg-type]  # shuffled, or drawn with replacement: each sample once is the better probe set
        return list(range(total))
    with random_state():
        return [int(i) for i in sampler]


class _Share:
    def __init__(self, batches: Iterable[Any], rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __iter__(self) -> Iterator[Any]:
        with random_state():
            yield from islice(self.batches, self.rank, None, self.size)


class PaddingCount:
    """How many of each batch's samples are real, where a `DistributedSampler` repeats some to make ranks equal."""

    def __init__(self, loader: Any) -> None:
        sampler = getattr(loader, "sampler", None)
        inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        found = next((s for s in (sampler, inner) if isinstance(s, DistributedSampler)), None)
        self._sampler = found if found is not None and not found.drop_last else None
        self._seen = 0

    def real(self, rows: int) -> int:
        """Of the next `rows` samples of this process, how many are no padding; they come first."""
        start, self._seen = self._seen, self._seen + rows
        if self._sampler is None:
            return rows
        total = len(self._sampler.dataset)  # type: ignore[arg-type]
        mine = len(range(self._sampler.rank, total, self._sampler.num_replicas))
        return max(0, min(rows, mine - start))
