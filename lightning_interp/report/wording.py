"""Numbers and names as a figure shows them."""

from __future__ import annotations

import html
import math
from typing import Any

from lightning_interp.events import Record


def escape(text: object) -> str:
    """Text that Plotly shows as it stands: of HTML it would read some tags and entities."""
    return html.escape(str(text), quote=False)


def number(value: float | None) -> str:
    """Two decimals with a true minus, small numbers with two digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """`+ 1.25` or `− 1.25`, as a term of a sum."""
    return f"{'−' if value < 0 else '+'} {abs(value):.2f}"


def percent(value: float | None) -> str:
    """A share of 1 as a percentage; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %".replace("-", "−")


def interval(record: Record) -> str:
    """` [low, high]` with a leading space, empty where withheld."""
    low, high = record["low"], record["high"]
    return "" if low is None or high is None else f" [{number(low)}, {number(high)}]"


def when(record: Record) -> str:
    """The event that a record is of."""
    return f"step {record['step']}, epoch {record['epoch']}"


def reason(record: Record) -> str:
    """Why a record has no value."""
    return f"withheld: {record['note'] or 'it could not be measured'}"


def hover(*lines: Any) -> str:
    """Lines of a hover label, escaped; empty ones are left out."""
    return "<br>".join(escape(line) for line in lines if line)
