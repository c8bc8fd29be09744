"""Sums and gathers over the processes of a run, and failing together; with one process they change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_interp.errors import LostProcessError, ProcessFailedError, described

T = TypeVar("T")

_depth = 0  # of `together`s that are inside each other


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclass(frozen=True)
class _Failure:
    """What a process hands the others in place of what they wait for.

    Attributes:
        text: of its error.
        depth: of the `together` that it leaves.
    """

    text: str
    depth: int


class _Told(BaseException):
    """On its way to the `together` that another process has left; nobody in between may take it for a failure of his own."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def gathered(item: T) -> list[T]:
    """Every process's item, in the order of ranks: a collective, so all must call it.

    Raises:
        LostProcessError: a process is gone, or did not come in time.
        ProcessFailedError: one of them failed; inside `together` it comes out there.
    """
    items = _exchanged(item)
    if any(isinstance(found, _Failure) for found in items):
        failure = _outermost(items)
        raise _Told(failure) if _depth else ProcessFailedError(failure.text)
    return items


def _exchanged(item: T) -> list[T]:
    _, size = world()
    if size == 1:
        return [item]
    items: list[T | None] = [None] * size
    try:
        dist.all_gather_object(items, item)
    except RuntimeError as problem:  # of torch.distributed
        raise LostProcessError(f"a process does not answer: {problem}") from problem
    return items  # type: ignore[return-value]


def _outermost(items: list[Any]) -> _Failure:
    failures = [_Failure(f"process {i}: {f.text}", f.depth) for i, f in enumerate(items) if isinstance(f, _Failure)]
    return min(failures, key=lambda f: f.depth)


@contextmanager
def together() -> Iterator[None]:
    """What fails on one process fails on all, where all are inside, and with the same text: a collective.

    The processes that did not fail learn of it in the next `gathered` that they come to, at the latest at the end; so nobody
    waits for one that has left, and all go on from the same place. It needs every collective inside to be a `gathered`. What
    all of them raise alike stays as it is.

    Raises:
        ProcessFailedError: a process failed.
    """
    global _depth
    if world()[1] == 1:
        yield
        return
    _depth += 1
    depth = _depth
    try:
        try:
            yield
        except LostProcessError:
            raise
        except Exception as problem:
            items = _exchanged(_Failure(described(problem), depth))
            if len({found.text if isinstance(found, _Failure) else None for found in items}) == 1:
                raise
            raise _Told(_outermost(items)) from problem
        gathered(None)
    except _Told as told:
        if told.failure.depth < depth:
            raise
        raise ProcessFailedError(told.failure.text) from told.__cause__
    finally:
        _depth = depth - 1


def with_others(state: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """A state for a checkpoint that one process writes: what each process has of its own stands in `others`; a collective.

    Args:
        state: of this process.
        own: the entries that the processes do not have in common.
    """
    parts = gathered(apply_to_collection({key: state[key] for key in own}, Tensor, lambda t: t.cpu()))
    return dict(state) if len(parts) == 1 else {**state, "others": parts[1:]}


def mine(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """This process's part of what `with_others` gave; the first's, where there were not as many processes then."""
    (rank, size), others = world(), state.get("others", ())
    return {**state, **others[rank - 1]} if rank and len(others) == size - 1 else state


def stacked(rows: Tensor) -> Tensor:
    """Every process's rows `[n, ...]` one under the other, on the CPU."""
    parts = [part for part in gathered(rows.cpu()) if part.numel()]
    return torch.cat(parts) if parts else rows.cpu()


@contextmanager
def states_of_all(metric: Any, states: Sequence[str]) -> Iterator[None]:
    """A metric's lists of tensors have those of all processes in them while inside, in the order of ranks: a collective."""
    before = {name: getattr(metric, name) for name in states}
    found = gathered({name: [t.cpu() for t in held] for name, held in before.items()} if world()[1] > 1 else before)
    try:
        for name in states:
            setattr(metric, name, [t for part in found for t in part[name]])
        yield
    finally:
        for name, held in before.items():
            setattr(metric, name, held)
