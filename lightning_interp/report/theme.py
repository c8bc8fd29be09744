"""Colours: a palette that colour-blind readers can tell apart, and what a light and a dark page need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_interp.errors import InterpError, nearest

# Okabe & Ito (2008) and Tol (2021): warm for what should not matter, cool for what should.
WARM = ("#D55E00", "#E69F00", "#CC79A7", "#AA4466", "#999933")
COOL = ("#0072B2", "#56B4E9", "#009E73", "#7570C9", "#44AA99")
ANY = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7570C9", "#999933")
GREY = "#8C949E"  # seen on white and on black
LIGHT_GREY = "#B4BBC4"
ALARM = "#D55E00"
DASHES = ("solid", "dash", "dot", "dashdot")
PATTERNS = ("", "x", ".", "-")

SEQUENTIAL = "Cividis"  # blue to yellow, made for colour-blind readers (Nuñez et al. 2018)
DIVERGING = [[0.0, "#0072B2"], [0.25, "#7FB8D8"], [0.5, "#F3F3F3"], [0.75, "#EBB07F"], [1.0, "#D55E00"]]

THEMES = {
    "light": {"ink": "#1F2328", "line": "#D6DBE1", "zero": "#9AA3AD", "label": "#FFFFFF"},
    "dark": {"ink": "#E6EAEF", "line": "#3A424C", "zero": "#7D8692", "label": "#20262E"},
}


def template(theme: str | Mapping[str, str]) -> dict[str, Any]:
    """The part of a Plotly layout that depends on the page.

    Args:
        theme: "light", "dark", or {"ink", "line", "zero", "label"}: colours of text, grid, zero line and hover labels.

    Raises:
        InterpError: no such theme.
    """
    if isinstance(theme, str) and theme not in THEMES:
        raise InterpError(f"`theme={theme!r}` is none of {', '.join(map(repr, THEMES))}.{nearest(theme, THEMES)}")
    c = THEMES[theme] if isinstance(theme, str) else {**THEMES["light"], **theme}
    axis = {
        "gridcolor": c["line"], "linecolor": c["line"], "zerolinecolor": c["zero"], "tickcolor": c["line"],
        "automargin": True, "title": {"standoff": 8, "font": {"size": 13}},
    }  # fmt: skip
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": c["ink"], "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": c["label"], "font": {"color": c["ink"]}, "align": "left", "namelength": -1},
            "colorway": list(ANY),
        }
    }


@dataclass(frozen=True)
class Style:
    """How one variable looks in every figure.

    Attributes:
        colour: hex.
        dash: of lines; other than "solid" where the palette comes round again.
        pattern: of areas, likewise.
    """

    colour: str
    dash: str = "solid"
    pattern: str = ""

    @property
    def faint(self) -> str:
        """The colour, nearly transparent, for an interval's band."""
        r, g, b = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({r},{g},{b},0.2)"


def styles(names: Sequence[str], confounders: Sequence[str]) -> dict[str, Style]:
    """{variable: style}: warm colours for confounders and cool ones for the rest, where any confounder is known.

    Args:
        names: variables, in the order of their appearance.
        confounders: those of them that should not matter; empty: nothing is known.
    """
    out: dict[str, Style] = {}
    groups = [(WARM, [n for n in names if n in confounders]), (COOL, [n for n in names if n not in confounders])]
    for palette, members in groups if confounders else [(ANY, list(names))]:
        for i, name in enumerate(members):
            again = i // len(palette) % len(DASHES)
            out[name] = Style(palette[i % len(palette)], DASHES[again], PATTERNS[again])
    out["interactions"] = Style(GREY, "dash")
    out["unexplained"] = Style(LIGHT_GREY, "dot", "/")
    return out
