"""Dot plots: a row for each stage or setting, a dot for each value."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ui.charts.template import category_axis
from ui.theme import LineStyle

WRAP = 20  # letters of a line of a row's label, so that a phone leaves room for the plot
SIZE = 11  # pixels
ROW = 44  # pixels


def dots(
    values: Sequence[float],
    rows: Sequence[object],
    colour: str | Sequence[str],
    symbol: str | Sequence[str],
    hover: Sequence[str],
    size: int = SIZE,
    **options: Any,
) -> go.Scatter:
    """One trace of dots, each in its row; `hover` is HTML of Plotly's kind."""
    line = {"width": 2, "color": colour}
    return go.Scatter(
        x=[*values],
        y=[*rows],
        mode="markers",
        hovertext=[*hover],
        marker={"size": size, "color": colour, "symbol": symbol, "line": line},
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
        **options,
    )


def rows_axis(rows: Sequence[str]) -> dict[str, Any]:
    """The rows from top to bottom. They are categories: "70%" is no number."""
    return category_axis(
        categoryorder="array", categoryarray=[*rows], showgrid=True, nticks=len(rows) + 1
    )


def rows_height(rows: int, around: int, least: int) -> int:
    """Pixels of a figure: `around`, of all but the rows, and theirs; `least` with few rows."""
    return max(least, around + ROW * rows)


def log_span(values: Sequence[float], right: float = 0.1) -> list[float]:
    """log10 of the ends of an axis that shows all values, with room beyond the largest (`right`, in
    parts of the span); empty where there are none."""
    if not values:
        return []
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(high - low, 0.1)
    return [low - 0.1 * room, high + right * room]


def symbol(stroke: LineStyle, shape: str = "circle") -> str:
    """Filled, or an outline where a stage shares its colour with another."""
    return shape if stroke.dash == "solid" else f"{shape}-open"


def in_lines(label: str) -> str:
    """A label broken into lines."""
    return "<br>".join(textwrap.wrap(label, WRAP))
