"""Events as TensorBoard summaries: text, a heat map, a layout with all contributions in one chart, and JSON for the tab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_interp.events import Event
from lightning_interp.summaries.event_log import event_content, event_tag, write_json
from lightning_interp.summaries.heatmap import MAX_VARIABLES, decodability_grid
from lightning_interp.summaries.heatmap import Heatmap as Heatmap
from lightning_interp.summaries.layout import layout as layout
from lightning_interp.summaries.text import equation_text as equation_text


class EventWriter:
    """Writes events to one `SummaryWriter`; their scalars go through the logger.

    Args:
        writer: a `SummaryWriter`, which gets the custom-scalars layout at once.
        variables: their names.
        prefix: that of the logged keys.
    """

    def __init__(self, writer: Any, variables: Sequence[str], prefix: str = "") -> None:
        self._writer = writer
        self._prefix = prefix
        self._start = f"{prefix}/" if prefix else ""
        self._written = 0
        self._heatmap: Heatmap | None = None
        writer.add_custom_scalars(layout(variables, prefix))

    def write(self, event: Event, step: int, alarms: Sequence[str] = ()) -> None:
        """Write an event's text, its heat map, and all of it as JSON.

        Args:
            event: what to write.
            step: where on the x-axis.
            alarms: warnings to show beside it.
        """
        self._writer.add_text(f"{self._start}equation", equation_text(event), step)
        for alarm in alarms:
            self._writer.add_text(f"{self._start}warning", alarm, step)
        self._written += 1
        write_json(self._writer, event_tag(self._prefix), event_content(event, alarms, self._prefix, self._written), step)
        layers, variables, grid = decodability_grid(event)
        if not layers or len(variables) > MAX_VARIABLES:
            return
        if self._heatmap is None or (self._heatmap.layers, self._heatmap.variables) != (layers, variables):
            self._heatmap = Heatmap(layers, variables)
        self._writer.add_image(f"{self._start}decodability", self._heatmap.draw(grid), step, dataformats="HWC")
