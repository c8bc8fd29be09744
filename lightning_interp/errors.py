"""What goes wrong, said so that the reader can mend it: the argument, what was expected, what came, the nearest name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["EditRefusedError", "InterpError", "InterpWarning", "LabelError", "LayerError", "ProbeSetError", "VariableError"]

_NUMBER = re.compile(r"(?<![\w'.])\d+(\.\d+)?(?![\w'.])")  # not in a name


class InterpError(ValueError):
    """Base of every error that this library raises on purpose."""


class LayerError(InterpError):
    """A layer or output module that does not exist, never ran, or gives something that cannot be read."""


class LabelError(InterpError):
    """A label, target or input that is not where the batch was said to hold it."""


class VariableError(InterpError):
    """A variable that cannot be coded, or that cannot be told apart from another."""


class ProbeSetError(InterpError):
    """A probe set with no usable rows.

    Attributes:
        skipped: batches that were left out, in all processes.
    """

    def __init__(self, text: str, skipped: int = 0) -> None:
        super().__init__(text)
        self.skipped = skipped


class ProcessFailedError(InterpError):
    """One of several processes failed, and so all did: the text says which, and with what."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone, or did not come in time: nothing can be agreed on any more."""


class EditRefusedError(InterpError):
    """An edit that would cost more than was allowed; the weights are as they were.

    Attributes:
        certificate: what was measured, see `certificate.certificate`.
    """

    def __init__(self, text: str, certificate: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.certificate = dict(certificate)


class InterpWarning(UserWarning):
    """Something was skipped, withheld or decided that the user should know of; said once."""


class NearestArgument:
    """A constructor that answers a mistyped keyword with the nearest right one, as Python itself does from 3.13 on.

    Hydra and plain code call constructors by keyword; jsonargparse looks at `__init__` before it does.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Check the names; the arguments are the constructor's business."""
        taken = inspect.signature(cls.__init__).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        known = [name for name in taken if name != "self"]
        for name in kwargs:
            if name not in known and not anything:
                raise TypeError(f"{cls.__name__} has no argument '{name}'.{nearest(name, known)}")
        return super().__new__(cls)


def described(problem: BaseException) -> str:
    """An exception in a sentence: of others than our own, the kind as well."""
    return str(problem) if isinstance(problem, InterpError) else f"{type(problem).__name__}: {problem}".rstrip(": ")


def alike(text: str) -> str:
    """A text without its numbers: what is to be said once may count differently the next time."""
    return _NUMBER.sub("#", text)


def nearest(name: str, known: Iterable[object], count: int = 3) -> str:
    """A hint that names the closest known names.

    Args:
        name: What the user wrote.
        known: What exists.
        count: How many names to give when nothing is close.

    Returns:
        `` Did you mean 'grass'?`` or `` Known: 'a', 'b', …``, with a leading space; empty if nothing is known.
    """
    names = [str(k) for k in known]
    if not names:
        return ""
    close = difflib.get_close_matches(str(name), names, n=count, cutoff=0.6)
    if close:
        return " Did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    shown = ", ".join(f"'{n}'" for n in names[: max(count, 8)])
    return f" Known: {shown}{', …' if len(names) > max(count, 8) else ''}."


def at_least(value: int, least: int, argument: str) -> int:
    """A whole number of a size.

    Raises:
        InterpError: it is none, or smaller.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InterpError(f"`{argument}` expects a whole number of {least} or more, got {value!r}.")
    return value


def known_names(given: Sequence[str], known: Sequence[str], argument: str) -> tuple[str, ...]:
    """The names that were given, one or several, checked to be among those that there are.

    Raises:
        InterpError: one is not; the message names the nearest that is.
    """
    given = (given,) if isinstance(given, str) else tuple(given)
    for name in given:
        if name not in known:
            raise InterpError(f"`{argument}`: {name!r} is none of {', '.join(known)}.{nearest(name, known)}")
    return given
