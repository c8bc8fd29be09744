"""Events as TensorBoard summaries: text, a heat map, and the layout that puts all contributions in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.events import Event
from lightning_interp.summaries.heatmap import decodability_heatmap as decodability_heatmap
from lightning_interp.summaries.layout import layout as layout
from lightning_interp.summaries.text import equation_text as equation_text


def write_layout(writer: Any, variables: Sequence[str], prefix: str = "") -> None:
    """Write the custom-scalars layout, once per log directory.

    Args:
        writer: a `SummaryWriter`.
        variables: their names.
        prefix: that of the logged keys.
    """
    writer.add_custom_scalars(layout(variables, prefix))


def write_event(writer: Any, event: Event, step: int, prefix: str = "", alarms: Sequence[str] = ()) -> None:
    """Write an event's text and heat map; its scalars go through the logger.

    Args:
        writer: a `SummaryWriter`.
        event: what to write.
        step: where on the x-axis.
        prefix: that of the logged keys.
        alarms: warnings to show beside it.
    """
    start = f"{prefix}/" if prefix else ""
    writer.add_text(f"{start}equation", equation_text(event), step)
    for alarm in alarms:
        writer.add_text(f"{start}warning", alarm, step)
    figure = decodability_heatmap(event)
    if figure is not None:
        writer.add_figure(f"{start}decodability", figure, step)
