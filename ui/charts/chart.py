"""Charts (a figure with its data), the style of all charts, and parts of Plotly layouts.

The style is one Plotly template per color mode. Figures name no template: the browser adds the
template of its mode, and replaces grays of the light palette in traces."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from ui.theme import DARK, LIGHT, SANS, LineStyle, Palette

pio.templates.default = "none"
MAX_TICKS = 5
LEGEND_ROW = 24  # pixels


@dataclass(frozen=True)
class Chart:
    """The content of a panel.

    Attributes:
        figure: a figure or its JSON, or a sentence that says why there is none.
        frame: the plotted data; the first column is the heading of a row.
        note: number of values, and other remarks.
        question: replaces the question of the panel.
        name: name of the chart's files, if run and panel are not enough.
        headline: finding on this data, which replaces the title of the panel.
        theory: known fact about charts of this type, with its source.
    """

    figure: go.Figure | str | dict[str, Any] | None
    frame: pd.DataFrame | None = None
    note: str = ""
    question: str = ""
    name: str = ""
    headline: str = ""
    theory: str = ""


def _template(palette: Palette) -> go.layout.Template:
    """The style of all charts in one color mode: few ticks, no frame, a light grid, a legible hover
    label, and a left-aligned legend above the plot."""
    small_font = {"size": 12, "color": palette.muted}
    font = {"family": ", ".join(map(str, SANS)), "size": 12, "color": palette.text}
    axis_style = {
        "title": {"font": small_font, "standoff": 8},
        "tickfont": small_font,
        "gridcolor": palette.line,
        "linecolor": palette.line,
        "zeroline": False,
        "ticks": "",
        "nticks": 7,
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": font,
            "paper_bgcolor": palette.paper,
            "plot_bgcolor": palette.paper,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "hoverlabel": {
                "bgcolor": palette.panel,
                "bordercolor": palette.line,
                "font": font,
                "align": "left",
            },
            "showlegend": False,
            "xaxis": axis_style,
            "yaxis": axis_style | {"ticklabelstandoff": 6},
            "legend": {
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "font": font,
                "bgcolor": "rgba(0,0,0,0)",
                "itemsizing": "trace",
                "tracegroupgap": 0,
            },
            "annotationdefaults": {"showarrow": False, "font": small_font, "xanchor": "left"},
        }
    )


def templates() -> str:
    """JSON of the templates by color mode, for the browser."""
    modes = {"light": LIGHT, "dark": DARK}
    return json.dumps({name: _template(p).to_plotly_json() for name, p in modes.items()})


def axis(title: str = "", *, log: bool = False, **options: Any) -> dict[str, Any]:
    """An axis; the title of a log axis ends with "(log axis)"."""
    if log:
        title = f"{title} (log axis)".strip()
        options = {"type": "log", "tickformat": "~g"} | options
    return {"title": {"text": title}} | options


def category_axis(**options: Any) -> dict[str, Any]:
    """A vertical axis of row labels from top to bottom, in the color of text."""
    rows = {"type": "category", "autorange": "reversed", "tickfont": {"color": LIGHT.text}}
    return axis(**rows | {"showgrid": False} | options)


def log_axis(title: str, span: Sequence[float], unit: str = "", **options: Any) -> dict[str, Any]:
    """A log axis with few round ticks.

    Args:
        span: log10 of the lowest and highest value; empty without data.
        unit: text after each tick label.
    """
    ticks = round_ticks(10 ** span[0], 10 ** span[1]) if span else []
    return axis(
        title,
        log=True,
        range=[*span] or None,
        tickvals=ticks,
        ticktext=[f"{tick_text(tick)}{unit}" for tick in ticks],
        **options,
    )


def tick_text(tick: float) -> str:
    """The label of a round positive tick, as a power of ten if it would have many digits."""
    if 1e-4 <= tick < 1e6:
        return f"{tick:,.6g}"
    power = math.floor(math.log10(tick) + 1e-9)
    factor = f"{tick / 10.0**power:.3g}·".removeprefix("1·")
    return f"{factor}10<sup>{power}</sup>".replace("-", "−")


def round_ticks(low: float, high: float) -> list[float]:
    """At most `MAX_TICKS` round numbers between two positive numbers, for a log axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [n * 10.0**k for k in decades for n in steps if low <= n * 10.0**k <= high]
        if 3 <= len(ticks) <= MAX_TICKS:
            return ticks
    if len(ticks) > MAX_TICKS:
        return ticks[:: math.ceil(len(ticks) / MAX_TICKS)]
    step = 10.0 ** math.floor(math.log10(high - low))  # less than a decade: even steps
    wide = next(step * n for n in (0.2, 0.5, 1, 2, 5) if (high - low) / (step * n) <= MAX_TICKS)
    return [n * wide for n in range(math.ceil(low / wide), math.floor(high / wide) + 1)]


def layout(*, view: str = "", top: int = 8, more: int = 0, **options: Any) -> dict[str, Any]:
    """The layout of a figure.

    Args:
        view: name of the displayed data; zoom and hidden lines are preserved while it is the same.
        top: pixels above the plot, for a legend.
        more: pixels in addition to the reserved height.
        options: further properties of a Plotly layout.
    """
    meta = {"meta": {"more": more}} if more else {}
    return {"margin": {"t": top}, "uirevision": view} | meta | options


def legend_row(top: int = 32, **options: Any) -> dict[str, Any]:
    """Arguments of `layout` for a horizontal legend."""
    return {"top": top, "showlegend": True, "legend": {"orientation": "h"} | options}


def legend_rows(lines: int) -> dict[str, Any]:
    """Arguments of `layout` for a legend with one row per line."""
    return {"top": LEGEND_ROW * lines + 8, "showlegend": True}


def reference_line(
    *, x: float | None = None, y: float | None = None, dash: str = "dash", **options: Any
) -> dict[str, Any]:
    """A shape: a thin gray line across the plot, vertical at `x` or horizontal at `y`."""
    if y is None:
        ends: dict[str, Any] = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    else:
        ends = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": "paper"}
    line = {"color": LIGHT.muted, "width": 1, "dash": dash}
    return {"type": "line", "line": line} | ends | options


def line_look(stroke: LineStyle, **options: Any) -> dict[str, Any]:
    """Properties of a trace's line."""
    return {"color": stroke.color, "dash": stroke.dash} | options


def tint(color: str, opacity: float) -> str:
    """A transparent version of a hexadecimal color."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
