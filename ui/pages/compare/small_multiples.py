"""Small multiples: the histograms of many tensors, all on the same axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ui.charts.series import ROW, Series, ceiling, reach, step_line
from ui.charts.template import layout, legend_row
from ui.theme import LIGHT

COLUMNS = 3
BINS = 64
GAP_X, GAP_Y = 0.03, 0.09
Tensors = Mapping[str, tuple[str, Sequence[Series]]]  # tensor -> title of its panel, its series


def small_multiples(panels: Tensors, picked: str = "") -> go.Figure:
    """One panel a tensor: its first series filled, the others as lines; the picked one's title
    stands out."""
    every = [s for _, series in panels.values() for s in series]
    rows = range(math.ceil(len(panels) / COLUMNS))
    figure = make_subplots(
        len(rows), COLUMNS, shared_xaxes="all", shared_yaxes="all", horizontal_spacing=GAP_X,
        vertical_spacing=GAP_Y,
        specs=[[{} if row * COLUMNS + column < len(panels) else None for column in range(COLUMNS)]
               for row in rows],
    )  # fmt: skip
    figure.update_xaxes(showgrid=False, range=reach(every), nticks=4, automargin=False)
    figure.update_yaxes(range=[0, ceiling([merged(s) for s in every])], nticks=3)
    for place, (tensor, (title, series)) in enumerate(panels.items()):
        row, column = divmod(place, COLUMNS)
        at = {"row": row + 1, "col": column + 1}
        for i, s in enumerate(series):
            figure.add_trace(_line(s, tensor, filled=i == 0, showlegend=place == 0), **at)
        left, top = (next(axes(**at)) for axes in (figure.select_xaxes, figure.select_yaxes))
        left.showticklabels = place + COLUMNS >= len(panels)  # the lowest of its column
        figure.add_annotation(
            text=f"<b>▸ {title}</b>" if tensor == picked else title, x=left.domain[0],
            y=top.domain[1], xref="paper", yref="paper", yanchor="bottom",
            font={"color": LIGHT.text} if tensor == picked else None,
        )  # fmt: skip
    looks = layout(view=f"shapes/{next(iter(panels), '')}", hovermode="x", **legend_row(y=1.06))
    return figure.update_layout(looks, margin={"l": 36, "t": ROW * 2 + 8, "b": 24})


def merged(series: Series) -> Series:
    counts = series.snapshot.counts.reshape(BINS, -1).sum(axis=1)
    return replace(series, snapshot=replace(series.snapshot, counts=counts))


def _line(series: Series, tensor: str, *, filled: bool, showlegend: bool) -> go.Scatter:
    drawn = merged(series)
    return step_line(
        drawn.centres, drawn.heights, series.stroke, 1 if filled else 1.5,
        fill=0.25 if filled else 0.0, customdata=[tensor] * BINS, name=series.label,
        legendgroup=series.label, showlegend=showlegend,
        hovertemplate=f"{series.label} %{{y:.2f}} %<extra></extra>",
    )  # fmt: skip
