"""What all figures share: type, greys, a light horizontal grid, no frame, legible hover.

Figures are drawn in the light palette; the browser exchanges its greys in dark mode.
"""

from __future__ import annotations

import math
from typing import Any

from ui.theme import LIGHT, SYSTEM

FAMILY = ", ".join(SYSTEM)


def axis(title: str = "", **options: Any) -> dict[str, Any]:
    """An axis with few ticks and no frame."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": LIGHT.muted}, "standoff": 8},
        "tickfont": {"size": 12, "color": LIGHT.muted},
        "gridcolor": LIGHT.line,
        "linecolor": LIGHT.line,
        "zeroline": False,
        "ticks": "",
        "nticks": 7,
        "automargin": True,
        "fixedrange": False,
    } | options


def layout(*, view: str = "", top: int = 8, **options: Any) -> dict[str, Any]:
    """The layout of a figure.

    Args:
        view: names what is looked at; zoom and hidden lines are kept while it stays the same.
        top: pixels above the plot, for a legend.
    """
    return {
        "template": "none",
        "font": {"family": FAMILY, "size": 12, "color": LIGHT.text},
        "paper_bgcolor": LIGHT.paper,
        "plot_bgcolor": LIGHT.paper,
        "margin": {"l": 8, "r": 8, "t": top, "b": 8},
        "hoverlabel": {
            "bgcolor": LIGHT.panel,
            "bordercolor": LIGHT.line,
            "font": {"family": FAMILY, "size": 12, "color": LIGHT.text},
            "align": "left",
        },
        "uirevision": view,
        "showlegend": False,
    } | options


def legend(**options: Any) -> dict[str, Any]:
    """A legend in rows above the plot, left-aligned, in the colour of text."""
    return {
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "font": {"size": 12, "color": LIGHT.text},
        "bgcolor": "rgba(0,0,0,0)",
        "itemsizing": "trace",
        "tracegroupgap": 0,
    } | options


def tint(colour: str, opacity: float) -> str:
    """A colour one can see through."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def ticks_to(limit: float, most: int = 4) -> list[float]:
    """Round numbers from 0 to `limit`, at most `most` besides 0."""
    power = 10.0 ** math.floor(math.log10(limit))
    steps = (power * n for n in (0.1, 0.2, 0.25, 0.5, 1, 2, 5))
    step = next(s for s in steps if limit / s < most + 1)
    return [n * step for n in range(int(limit / step + 1e-9) + 1)]
