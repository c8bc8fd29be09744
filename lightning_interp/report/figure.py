"""A figure as Plotly's JavaScript takes it: plain dicts, drawn by whoever shows it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_interp.errors import InterpError
from lightning_interp.report.theme import template

MISSING = 'The figures need plotly: pip install "lightning-interp[report]".'


class Figure:
    """Traces and a layout; shows itself in a notebook.

    Args:
        data: traces, as Plotly's JavaScript takes them.
        layout: likewise, without colours that depend on the page.
    """

    def __init__(self, data: list[dict[str, Any]], layout: dict[str, Any]) -> None:
        self.data = data
        self.layout = layout

    @property
    def spec(self) -> dict[str, Any]:
        """`to_dict()` for a light page."""
        return self.to_dict()

    def to_dict(self, theme: str | Mapping[str, str] = "light") -> dict[str, Any]:
        """{"data", "layout"} of plain types: what `Plotly.newPlot` or `plotly.graph_objects.Figure` takes.

        Args:
            theme: "light", "dark" or colours, see `theme.template`. The background is transparent in all of them.
        """
        return {"data": self.data, "layout": {**self.layout, "template": template(theme)}}

    def to_html(self, theme: str | Mapping[str, str] = "light") -> str:
        """One page that draws the figure offline: 4.8 MB, Plotly's JavaScript is in it.

        Raises:
            InterpError: plotly is not installed.
        """
        spec = script_json(self.to_dict(theme))
        return (
            '<!doctype html><html><head><meta charset="utf-8"></head><body><div id="figure"></div>'
            f"<script>{plotly_javascript()}</script><script>const spec = {spec};"
            'Plotly.newPlot("figure", spec.data, spec.layout, {responsive: true, displaylogo: false});</script></body></html>'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if find_spec("plotly") is None:
            raise InterpError(MISSING)
        return {"application/vnd.plotly.v1+json": self.to_dict(), "text/html": self._repr_html_()}

    def _repr_html_(self) -> str:
        # A notebook keeps this beside every figure, for places that draw none: not the 4.8 MB of `to_html`.
        rows = "".join(_rows(trace) for trace in self.data)
        title = html.escape(self.title)
        return f"<details><summary>{title}, as a table</summary><table>{rows}</table></details>"

    @property
    def title(self) -> str:
        """What the figure is called, unescaped."""
        return html.unescape(str(self.layout.get("title", {}).get("text", "figure"))).replace("<br>", " ")

    def __repr__(self) -> str:
        return f"Figure({self.title!r}, {len(self.data)} traces)"


def _rows(trace: Mapping[str, Any]) -> str:
    # `hovertext` is escaped already, and says what the point is.
    texts = trace.get("hovertext") or []
    flat = [t for row in texts for t in (row if isinstance(row, list) else [row])]
    return "".join(f"<tr><td>{t.replace('<br>', '; ')}</td></tr>" for t in flat if t)


def plotly_javascript() -> str:
    """Plotly's JavaScript, from the installed package.

    Raises:
        InterpError: plotly is not installed.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise InterpError(MISSING)
    return (Path(found.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def script_json(plain: Any) -> str:
    """JSON that may stand inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
