"""What zeros buy: bytes of the layers in the formats there are, and the speed of a product without
the zeros, relative to the dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ui.charts.template import axis, layout, log_axis
from ui.format import share, size
from ui.theme import BLUE, LIGHT, stage_style
from ui.widgets.panel import Chart

MEGA = 1e6
DENSE = "dense"


def format_sizes(sizes: Mapping[str, float], note: str = "") -> Chart:
    """One bar a format, its size and share of dense beside its name.

    Args:
        sizes: format -> bytes, "dense" among them.
    """
    frame = pd.DataFrame(
        {
            "Format": name,
            "Size, MB": value / MEGA,
            "Of dense, %": 100 * value / sizes[DENSE],
        }
        for name, value in sizes.items()
    )
    labels = [
        f"<b>{name}</b><br>{size(v)}, {share(v / sizes[DENSE], 0)}" for name, v in sizes.items()
    ]
    colours = [stage_style(DENSE).colour if name == DENSE else BLUE for name in sizes]
    bars = go.Bar(
        x=frame["Size, MB"], y=labels, orientation="h", width=0.55, marker={"color": colours},
        hovertext=frame["Format"], hovertemplate="%{hovertext}: %{x:.4g} MB<extra></extra>",
    )  # fmt: skip
    rows = axis(
        type="category", autorange="reversed", showgrid=False, tickfont={"color": LIGHT.text}
    )
    width = axis("Megabytes", rangemode="tozero", showgrid=False)
    return Chart(go.Figure(bars, layout(view="formats", xaxis=width, yaxis=rows)), frame, note)


def sparse_products(
    zeros: Sequence[float], speed_up: Sequence[float], own: float, note: str = ""
) -> Chart:
    """Speed-up of a product without the zeros over the dense one, by sparsity.

    Args:
        zeros: ascending; `speed_up` at each.
        own: the model's sparsity, marked; 0 marks nothing.
    """
    frame = pd.DataFrame({"Zeros, %": [100 * z for z in zeros], "Speed-up, ×": [*speed_up]})
    line = go.Scatter(
        x=frame["Zeros, %"], y=frame["Speed-up, ×"], mode="lines+markers",
        line={"color": BLUE, "width": 2}, marker={"size": 7},
        hovertemplate="%{x:.4g} % zeros: %{y:.3g} × the dense speed<extra></extra>",
        cliponaxis=False,
    )  # fmt: skip
    ends = [math.log10(min(*speed_up, 1.0) / 1.15), math.log10(max(*speed_up, 1.0) * 1.15)]
    looks = layout(
        view="products",
        top=24,
        xaxis=axis("Zeros, %", showgrid=False),
        yaxis=log_axis("Speed-up over dense", ends, " ×", showgrid=True),
    )
    figure = go.Figure(line, looks)
    grey = {"color": LIGHT.muted, "width": 1}
    even = {"x0": 0, "x1": 1, "xref": "paper", "y0": 1, "y1": 1, "line": grey | {"dash": "dash"}}
    figure.add_shape(type="line", **even)
    _label(figure, "as fast as dense", x=1, y=0, xref="paper", xanchor="right")  # y: log10
    if own:
        here = {"x0": 100 * own, "x1": 100 * own, "y0": 0, "y1": 1, "yref": "paper"}
        figure.add_shape(type="line", **here, line=grey | {"dash": "dot"})
        _label(figure, f"this model, {share(own, 0)}", x=100 * own, y=1, yref="paper")
    return Chart(figure, frame, note)


def _label(figure: go.Figure, text: str, **place: object) -> None:
    """A quiet label on the plot."""
    looks = {"xanchor": "left", "yanchor": "bottom", "font": {"color": LIGHT.muted}} | place
    figure.add_annotation(text=text, showarrow=False, **looks)
