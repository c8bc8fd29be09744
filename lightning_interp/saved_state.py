"""What a checkpoint holds of ours: read if it can be, and if not, with an error that says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_interp.errors import InterpError


@contextmanager
def restoring(what: str, state: Mapping[str, Any], version: int) -> Iterator[None]:
    """Read a state inside; what goes wrong is told to the user, whose checkpoint is of another version or of other settings.

    Args:
        what: whose state it is.
        state: as it was saved; one without a `version` is older than all that have one.
        version: the latest that can be read.

    Raises:
        InterpError: the state is of a later version, or lacks something.
    """
    if state.get("version", 0) > version:
        raise InterpError(
            f"the checkpoint's {what} state has version {state['version']}, this library reads up to {version}; "
            "update lightning-interp."
        )
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as problem:
        lacks = isinstance(problem, KeyError)
        why = f"it has no {problem}" if lacks else str(problem)
        raise InterpError(
            f"the checkpoint's {what} state cannot be read: {why}. It is of another version of lightning-interp, or of other "
            "settings: give those again, or start the callback afresh by taking its entry out of checkpoint['callbacks']."
        ) from problem
