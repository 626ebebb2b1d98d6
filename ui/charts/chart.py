"""A figure and the frame it is drawn from, as a panel of a page shows them; the look all charts
share, as a Plotly template for each mode, and the parts of a layout. A figure names no template:
the browser adds that of its mode. Grays of the light palette that a trace names itself are
exchanged there, too."""

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
LEGEND_ROW, FEW_LINES = 24, 2  # pixels of a row; so many rows fit a view as it is


@dataclass(frozen=True)
class Chart:
    """Content of a panel."""

    figure: go.Figure | str | dict[str, Any] | None  # a sentence says why there is none
    frame: pd.DataFrame | None = None  # figures drawn, a row each, headed by the first column
    note: str = ""  # number of values shown
    question: str = ""  # instead of the panel's own
    name: str = ""  # of its files, where run and panel do not tell enough
    headline: str = ""  # finding on this data, its title; the panel's own if empty
    theory: str = ""  # known fact about such charts, with its source


def _template(palette: Palette) -> go.layout.Template:
    """How every chart of a mode looks: few ticks, no frame, a light grid, a legible hover label,
    and a legend above the plot, left-aligned."""
    small = {"size": 12, "color": palette.muted}
    words = {"family": ", ".join(map(str, SANS)), "size": 12, "color": palette.text}
    ax = {
        "title": {"font": small, "standoff": 8},
        "tickfont": small,
        "gridcolor": palette.line,
        "linecolor": palette.line,
        "zeroline": False,
        "ticks": "",
        "nticks": 7,
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "font": words,
            "paper_bgcolor": palette.paper,
            "plot_bgcolor": palette.paper,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "hoverlabel": {
                "bgcolor": palette.panel,
                "bordercolor": palette.line,
                "font": words,
                "align": "left",
            },
            "showlegend": False,
            "xaxis": ax,
            "yaxis": ax | {"ticklabelstandoff": 6},
            "legend": {
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "font": words,
                "bgcolor": "rgba(0,0,0,0)",
                "itemsizing": "trace",
                "tracegroupgap": 0,
            },
            "annotationdefaults": {"showarrow": False, "font": small, "xanchor": "left"},
        }
    )


def templates() -> str:
    """JSON of the templates by mode; the browser puts the one of its mode into every figure."""
    modes = {"light": LIGHT, "dark": DARK}
    return json.dumps({name: _template(p).to_plotly_json() for name, p in modes.items()})


def axis(title: str = "", *, log: bool = False, **options: Any) -> dict[str, Any]:
    """An axis; the template gives its look. A log axis says in its title that it is one."""
    if log:
        title = f"{title} (log axis)".strip()
        options = {"type": "log", "tickformat": "~g"} | options
    return {"title": {"text": title}} | options


def category_axis(**options: Any) -> dict[str, Any]:
    """Names from top to bottom, in the color of text: what each row of a chart is called."""
    rows = {"type": "category", "autorange": "reversed", "tickfont": {"color": LIGHT.text}}
    return axis(**rows | {"showgrid": False} | options)


def log_axis(title: str, span: Sequence[float], unit: str = "", **options: Any) -> dict[str, Any]:
    """A log axis with few round ticks, `unit` behind each. `span`: log10 of its lowest and highest
    value; empty where nothing is drawn."""
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
    """A round positive number, as a power of ten where plain digits would be many."""
    if 1e-4 <= tick < 1e6:
        return f"{tick:,.6g}"
    power = math.floor(math.log10(tick) + 1e-9)
    factor = f"{tick / 10.0**power:.3g}·".removeprefix("1·")
    return f"{factor}10<sup>{power}</sup>".replace("-", "−")


def round_ticks(low: float, high: float) -> list[float]:
    """At most five round numbers between two positive ones, for a log axis."""
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
    """The layout of a figure. `view` names what is looked at: zoom and hidden lines are kept while
    it stays the same; `top`: pixels above the plot, for a legend; `more`: those the figure asks for
    besides the height of its view."""
    meta = {"meta": {"more": more}} if more else {}
    return {"margin": {"t": top}, "uirevision": view} | meta | options


def legend_row(top: int = 32, **options: Any) -> dict[str, Any]:
    """Arguments of `layout`: a legend whose lines stand side by side."""
    return {"top": top, "showlegend": True, "legend": {"orientation": "h"} | options}


def legend_rows(lines: int, *, grow: bool = False) -> dict[str, Any]:
    """Arguments of `layout`: a legend with a row a line; the figure may `grow` with them."""
    more = LEGEND_ROW * max(0, lines - FEW_LINES) if grow else 0
    return {"top": LEGEND_ROW * lines + 8, "more": more, "showlegend": True}


def reference_line(
    *, x: float | None = None, y: float | None = None, dash: str = "dash", **options: Any
) -> dict[str, Any]:
    """A shape: a thin gray line across the whole plot, at `x` or at `y`."""
    if y is None:
        ends: dict[str, Any] = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    else:
        ends = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": "paper"}
    line = {"color": LIGHT.muted, "width": 1, "dash": dash}
    return {"type": "line", "line": line} | ends | options


def line_look(stroke: LineStyle, **options: Any) -> dict[str, Any]:
    """The line of a trace."""
    return {"color": stroke.color, "dash": stroke.dash} | options


def tint(color: str, opacity: float) -> str:
    """A color one can see through."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def ticks_to(limit: float, most: int = 4) -> list[float]:
    """Round numbers from 0 to `limit`, at most `most` besides 0."""
    power = 10.0 ** math.floor(math.log10(limit))
    steps = (power * n for n in (0.1, 0.2, 0.25, 0.5, 1, 2, 5))
    step = next(s for s in steps if limit / s < most + 1)
    return [n * step for n in range(int(limit / step + 1e-9) + 1)]
