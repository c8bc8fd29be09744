"""The samples that a discovered feature is strongest on, as HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lightning_interp.report.features import SAID
from lightning_interp.report.wording import number, percent

BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def samples_table(found: Sequence[Mapping[str, Any]]) -> str:
    """A table with one row per feature: its numbers, and samples that it is strongest and weakest on. Everything is escaped.

    Args:
        found: the "features" of one event of `DiscoverFeatures`.
    """
    numbers = (f'<th title="{escape(what)}">{escape(head)}</th>' for head, what in SAID.values())
    heads = f"<th>feature</th><th>share</th>{''.join(numbers)}<th>by group</th><th>strongest</th><th>weakest</th>"
    return f'<table class="samples"><thead><tr>{heads}</tr></thead><tbody>{"".join(map(_row, found))}</tbody></table>'


def _row(f: Mapping[str, Any]) -> str:
    name = escape(str(f["name"])) + (f"<br>→ {escape(str(f['promoted']))}" if f.get("promoted") else "")
    groups = (f"<p>{escape(str(cell))}: {number(value)}</p>" for cell, value in (f.get("groups") or {}).items())
    cells = [percent(f.get("contribution")), *(number(f.get(key)) for key in SAID), "".join(groups)]
    shown = [_samples(f.get(which)) for which in ("strongest", "weakest")]
    return f"<tr><th>{name}</th>{''.join(f'<td>{c}</td>' for c in (*cells, *shown))}</tr>"


def _samples(s: Mapping[str, Any] | None) -> str:
    kind = (s or {}).get("kind")
    if s is None or kind not in ("image", "text", "rows"):
        return "–"
    if kind == "image":
        png = str(s["png"])
        return (
            f'<img alt="{escape(str(s["count"]))} samples" src="data:image/png;base64,{png}">' if BASE64.fullmatch(png) else "–"
        )
    if kind == "text":
        return "".join(f"<p>{escape(str(text))}</p>" for text in s["texts"])
    heads = "".join(f"<th>{escape(str(c))}</th>" for c in s["columns"])
    rows = "".join(f"<tr>{''.join(f'<td>{number(v)}</td>' for v in row)}</tr>" for row in s["rows"])
    return f"<table><tr>{heads}</tr>{rows}</table>"
