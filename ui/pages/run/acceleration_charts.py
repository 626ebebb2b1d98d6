"""What zeros buy: bytes of the layers in the formats there are, and the time of a product without
the zeros beside the dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ui.charts.template import axis, layout, log_axis
from ui.format import share, size
from ui.theme import BLUE, LIGHT, stage_style

MEGA = 1e6


def format_sizes(sizes: Mapping[str, float]) -> go.Figure:
    """One bar a format, its size and share of dense beside its name.

    Args:
        sizes: format -> bytes, "dense" among them.
    """
    dense = sizes["dense"]
    values = [value / MEGA for value in sizes.values()]
    names = [f"<b>{name}</b><br>{size(v)}, {share(v / dense, 0)}" for name, v in sizes.items()]
    colours = [stage_style("dense").colour if name == "dense" else BLUE for name in sizes]
    bars = go.Bar(
        x=values, y=names, orientation="h", width=0.55, marker={"color": colours},
        hovertext=[*sizes], hovertemplate="%{hovertext}: %{x:.4g} MB<extra></extra>",
    )  # fmt: skip
    return go.Figure(
        bars,
        layout(
            view="formats",
            xaxis=axis("Megabytes", rangemode="tozero", showgrid=False),
            yaxis=axis(
                type="category",
                autorange="reversed",
                showgrid=False,
                tickfont={"size": 12, "color": LIGHT.text},
            ),
        ),
    )


def sparse_products(zeros: Sequence[float], speed_up: Sequence[float], own: float) -> go.Figure:
    """Speed-up of a product without the zeros over the dense one, by the share of zeros.

    Args:
        zeros: ascending; `speed_up` at each.
        own: the model's share of zeros, marked; 0 marks nothing.
    """
    low, high = min(*speed_up, 1.0) / 1.15, max(*speed_up, 1.0) * 1.15
    grey = {"color": LIGHT.muted, "width": 1, "dash": "dash"}
    even = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": grey}
    here = {
        "type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 100 * own, "x1": 100 * own,
        "line": grey | {"dash": "dot"},
    }  # fmt: skip
    line = go.Scatter(
        x=[100 * z for z in zeros], y=[*speed_up], mode="lines+markers",
        line={"color": BLUE, "width": 2}, marker={"size": 7},
        hovertemplate="%{x:.4g} % zeros: %{y:.3g} × the dense speed<extra></extra>",
        cliponaxis=False,
    )  # fmt: skip
    return go.Figure(
        line,
        layout(
            view="products",
            top=24,
            shapes=[even, here] if own else [even],
            annotations=[_word("as fast as dense", x=1, y=0, xref="paper", xanchor="right")]
            + [_word(f"this model, {share(own, 0)}", x=100 * own, y=1, yref="paper")] * bool(own),
            xaxis=axis("Zeros, %", showgrid=False),
            yaxis=log_axis(
                "Speed-up over dense", [math.log10(low), math.log10(high)], " ×", showgrid=True
            ),
        ),
    )  # fmt: skip


def _word(text: str, **place: object) -> dict[str, object]:
    """A label on the plot; on a log axis its `y` is a logarithm."""
    font = {"size": 12, "color": LIGHT.muted}
    common = {"showarrow": False, "xanchor": "left", "yanchor": "bottom", "font": font}
    return {"text": text} | common | place
