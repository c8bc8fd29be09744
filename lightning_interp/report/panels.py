"""Small multiples: one panel per run, with the same axes, so that runs are compared at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_interp.report.wording import escape

GAP, LINE = 38, 18  # pixels between rows: the ticks, and every line of a panel's title
SPACE = 0.06  # between columns, of the width
TOP, BOTTOM = 46, 84  # pixels around all: the figure's title, the legend


class Panels:
    """A grid of panels, filled from the left. What draws the figure gives it `layout.height` pixels.

    Args:
        titles: one per panel; HTML that Plotly reads is escaped.
        columns: at most so many side by side.
        height: of a panel, pixels; or one per row.
        linked: axes that all panels share, of "x" and "y".
    """

    def __init__(self, titles: Sequence[str], columns: int = 3, height: int | Sequence[int] = 250, linked: str = "xy") -> None:
        self.titles = list(titles)
        self.columns = max(1, min(columns, len(self.titles)))
        rows = -(-len(self.titles) // self.columns)
        self.heights = [height] * rows if isinstance(height, int) else list(height)
        self.linked = linked
        self._said = LINE * max((1 + title.count("<br>") for title in self.titles), default=1)

    def axes(self, index: int) -> dict[str, str]:
        """{"xaxis", "yaxis"} for a trace of the panel with this index."""
        n = "" if index == 0 else str(index + 1)
        return {"xaxis": f"x{n}", "yaxis": f"y{n}"}

    def layout(self, title: str, x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """The figure's layout.

        Args:
            title: of the figure.
            x: settings of every x-axis.
            y: settings of every y-axis.
            more: further keys of the layout.
        """
        gap = GAP + self._said
        inner = sum(self.heights) + gap * (len(self.heights) - 1)
        out: dict[str, Any] = {
            "title": {
                "text": escape(title), "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 16},
                "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14},
            },
            "height": inner + TOP + self._said + BOTTOM,
            "margin": {"l": 60, "r": 20, "t": TOP + self._said, "b": BOTTOM},
            "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
            "hovermode": "closest",
            "annotations": [],
            **more,
        }  # fmt: skip
        for i, text in enumerate(self.titles):
            self._place(out, i, text, inner, gap, x, y)
        return out

    def _place(
        self, out: dict[str, Any], i: int, text: str, inner: int, gap: int, x: Mapping[str, Any], y: Mapping[str, Any]
    ) -> None:
        row, column = divmod(i, self.columns)
        names = self.axes(i)
        space = SPACE if self.columns > 1 else 0.0
        width = (1 - space * (self.columns - 1)) / self.columns
        left = column * (width + space)
        top = 1 - (sum(self.heights[:row]) + gap * row) / inner
        bottom = top - self.heights[row] / inner
        for axis, other, domain, given in (
            ("x", "y", [left, left + width], x),
            ("y", "x", [max(0.0, bottom), top], y),
        ):
            settings = {**given, "domain": domain, "anchor": names[f"{other}axis"]}
            if axis == "y" and column:
                settings.pop("title", None)
            if axis == "x" and i + self.columns < len(self.titles):
                settings.pop("title", None)
            if i and axis in self.linked:
                settings["matches"] = axis
            out[names[f"{axis}axis"].replace(axis, f"{axis}axis", 1)] = settings
        if text:
            out["annotations"].append(
                {
                    "text": text, "showarrow": False, "align": "left", "font": {"size": 13},
                    "xref": "paper", "yref": "paper", "x": left, "y": top, "xanchor": "left", "yanchor": "bottom",
                }
            )  # fmt: skip
