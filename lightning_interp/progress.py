"""A progress bar for passes of the library's own that take long, shown where whoever called wants one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from lightning_interp.processes import world

DELAY = 2.0  # seconds before a bar appears
T = TypeVar("T")
_wanted: ContextVar[bool] = ContextVar("wanted", default=False)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show bars inside, on the first process; without it there are none.

    Args:
        shown: whether they are wanted.
    """
    token = _wanted.set(shown and world()[0] == 0)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether whoever called wants bars."""
    return _wanted.get()


def bar(batches: Iterable[T], what: str) -> Iterable[T]:
    """The batches, under a bar where one is wanted, it has been going for two seconds, and standard error is a terminal.

    Args:
        batches: what is gone through.
        what: beside the bar.
    """
    if not wanted():
        return batches
    return tqdm(batches, desc=what, delay=DELAY, leave=False, disable=None, dynamic_ncols=True)
