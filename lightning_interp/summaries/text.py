"""The equation as text for TensorBoard."""

from __future__ import annotations

from lightning_interp.events import HIDDEN_FACTOR, Effect, Event
from lightning_interp.summaries.markdown import block, cell


def equation_text(event: Event) -> str:
    """The event as Markdown: the equation with intervals, then a table of shares, then the caveat.

    Args:
        event: what to show.
    """
    rows = ["| variable | effect | 95 % interval | share | debiased | robustness |", "|---|---|---|---|---|---|"]
    for name, share in event.contribution.items():
        found = event.effect.get(name)
        one = found if isinstance(found, Effect) else None
        size = event.magnitude.get(name)
        interval = "" if one is None or one.low is None or one.high is None else f"{one.low:.3f} … {one.high:.3f}"
        cells = (
            cell(name),
            "" if size is None else f"{size:.3f}",
            interval,
            _percent(share.value),
            _percent(share.debiased),
            "" if one is None or one.robustness is None else f"{one.robustness:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return f"{block(event)}\n\n" + "\n".join(rows) + f"\n\n{HIDDEN_FACTOR}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
