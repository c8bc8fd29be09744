"""Text that Markdown shows as it stands: TensorBoard would else load a picture that a name or a sample gives the address of."""

from __future__ import annotations

import re

_MEANT = re.compile(r"[\\`*_{}\[\]()<>#!|&~]")
_SPACE = re.compile(r"[\s\x00-\x1f]+")


def cell(text: object) -> str:
    """One cell of a table: every sign that means something is an entity, line breaks are spaces."""
    return _MEANT.sub(lambda found: f"&#{ord(found[0])};", _SPACE.sub(" ", str(text)))


def block(text: object) -> str:
    """A block of code, every line indented; `cell` is not needed in it."""
    return "\n".join(f"    {line}" for line in str(text).splitlines())
