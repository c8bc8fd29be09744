"""`NearestNameParser`: a command line whose last line names what was probably meant."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from lightning_interp.errors import InterpError, nearest

__all__ = ["NearestNameParser"]

try:
    from lightning.pytorch.cli import LightningArgumentParser
except ImportError:  # the other name of the same package
    from pytorch_lightning.cli import LightningArgumentParser  # type: ignore[assignment]

_PATH = re.compile(r"given class_path '([\w.]+)'")
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
_LITERAL = re.compile(r"typing\.Literal\[([^\]]*)\](?:\. Got value: |[^\[]*?Given value: )([\w.-]+)$", re.MULTILINE)
_QUOTED = re.compile(r"'([^']*)'")
_OURS = re.compile(r"[^\n]*(?:Did you mean|Known:)[^\n]*")


class NearestNameParser(LightningArgumentParser):
    """`LightningCLI(parser_class=NearestNameParser)`: after jsonargparse's many lines, one that names the nearest right name.

    It knows of mistyped classes, arguments and choices of any class, and repeats what this library's own errors suggest.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report what went wrong, and as the last line what was probably meant."""
        found = list(_meant(message))
        super().error("\n".join([message.rstrip(), *found[-1:]]), ex)

    def instantiate_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Build the objects; an error says in its last line what was probably meant."""
        try:
            return super().instantiate_classes(*args, **kwargs)
        except ValueError as problem:
            found = list(_meant(str(problem)))
            if not found:
                raise
            raise InterpError("\n".join([str(problem).rstrip(), found[-1]])) from problem


def _meant(message: str) -> Iterator[str]:
    """What was probably meant, for every slip that the message tells of."""
    for slip in _PATH.finditer(message):
        where, _, name = slip[1].rpartition(".")
        module = _module(where or "lightning_interp")
        if module is not None and not hasattr(module, name):
            known = getattr(module, "__all__", [n for n in dir(module) if not n.startswith("_")])
            yield f"`class_path: {slip[1]}`: there is no '{name}'.{nearest(name, known)}"
    for slip in _LITERAL.finditer(message):
        yield f"'{slip[2]}' is none of {slip[1]}.{nearest(slip[2], _QUOTED.findall(slip[1]))}"
    for slip in _OPTION.finditer(message):
        for owner in _PATH.findall(message[: slip.start()])[-1:]:
            where, _, name = owner.rpartition(".")
            made = getattr(_module(where), name)
            known = [parameter for parameter in inspect.signature(made.__init__).parameters if parameter != "self"]
            yield f"{name} has no argument '{slip[1]}'.{nearest(slip[1], known)}"
    for slip in _OURS.finditer(message):
        yield slip[0].strip(" -")


def _module(name: str) -> Any:
    # jsonargparse has imported what the user wrote; what is not there now is not looked for.
    return sys.modules.get(name)
