"""Small multiples: the histograms of many tensors, all on the same axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ui.charts.histograms import PER_BIN
from ui.charts.series import ROW, Series, ceiling, reach, step_line
from ui.charts.template import axis, layout, legend, tint
from ui.theme import LIGHT

COLUMNS = 3
PANELS = 4 * COLUMNS  # of a page; fewer fill the same space
BINS = 64
GAP_X, GAP_Y = 0.03, 0.09
Tensors = Mapping[str, tuple[str, Sequence[Series]]]  # tensor -> title of its panel, its series


def small_multiples(panels: Tensors, picked: str = "") -> go.Figure:
    """One panel a tensor: its first series filled, the others as lines.

    Args:
        panels: at most `PANELS`.
        picked: the tensor whose title stands out.
    """
    every = [s for _, series in panels.values() for s in series]
    limit = ceiling([merged(s) for s in every])
    across = reach(every)
    traces: list[go.Scatter] = []
    axes: dict[str, Any] = {}
    titles = []
    rows = math.ceil(len(panels) / COLUMNS)
    for place, (tensor, (title, series)) in enumerate(panels.items()):
        n = "" if place == 0 else str(place + 1)
        left, bottom = _corner(place, rows)
        x_domain = [left, min(left + _width(), 1.0)]
        top = min(bottom + _height(rows), 1.0)
        lowest = place + COLUMNS >= len(panels)
        axes[f"xaxis{n}"] = axis(
            "", showgrid=False, domain=x_domain, anchor=f"y{n}", range=across, nticks=4,
            showticklabels=lowest, matches="x" if n else None, automargin=False,
        )  # fmt: skip
        axes[f"yaxis{n}"] = axis(
            "", domain=[bottom, top], anchor=f"x{n}", range=[0, limit], nticks=3,
            showticklabels=place % COLUMNS == 0, matches="y" if n else None,
        )  # fmt: skip
        titles.append(_title(title, left, top, tensor == picked))
        for i, s in enumerate(series):
            line = _line(s, i, n, place == 0)
            traces.append(
                line.update(customdata=[tensor] * BINS, meta={"column": f"{title}, {s.label}"})
            )
    return go.Figure(
        traces,
        layout(
            view=f"shapes/{next(iter(panels), '')}",
            meta={"x": "Weight", "y": PER_BIN},  # what the axes of the file are called
            margin={"l": 36, "r": 8, "t": ROW * 2 + 8, "b": 24},
            annotations=titles,
            hovermode="x",
            showlegend=True,
            legend=legend(orientation="h", y=1.06),
            **axes,
        ),
    )


def _width() -> float:
    return (1 - GAP_X * (COLUMNS - 1)) / COLUMNS


def _height(rows: int) -> float:
    return (1 - GAP_Y * (rows - 1)) / rows


def _corner(place: int, rows: int) -> tuple[float, float]:
    """Left and bottom of a panel, in shares of the plot; the first is top left."""
    row, column = divmod(place, COLUMNS)
    return column * (_width() + GAP_X), (rows - 1 - row) * (_height(rows) + GAP_Y)


def _title(text: str, left: float, top: float, picked: bool) -> dict[str, Any]:
    return {
        "text": f"<b>▸ {text}</b>" if picked else text,
        "x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left",
        "yanchor": "bottom", "showarrow": False,
        "font": {"size": 12, "color": LIGHT.text if picked else LIGHT.muted},
    }  # fmt: skip


def merged(series: Series) -> Series:
    """The same in `BINS` bins."""
    counts = series.snapshot.counts.reshape(BINS, -1).sum(axis=1)
    return replace(series, snapshot=replace(series.snapshot, counts=counts))


def _line(series: Series, place: int, n: str, first: bool) -> go.Scatter:
    drawn = merged(series)
    return go.Scatter(
        x=drawn.centres.tolist(),
        y=drawn.heights.tolist(),
        xaxis=f"x{n}",
        yaxis=f"y{n}",
        mode="lines",
        line=step_line(series.stroke, 1 if place == 0 else 1.5),
        fill="tozeroy" if place == 0 else None,
        fillcolor=tint(series.stroke.colour, 0.25),
        name=series.label,
        legendgroup=series.label,
        showlegend=first,
        hovertemplate=f"{series.label} %{{y:.2f}} %<extra></extra>",
    )  # fmt: skip


def panels_frame(panels: Tensors) -> pd.DataFrame:
    """The histograms as a table, a row for each line of each panel."""
    rows = [
        [tensor, s.label, s.snapshot.lo, s.snapshot.hi, s.snapshot.zeros, *s.snapshot.counts]
        for tensor, (_, series) in panels.items()
        for s in map(merged, series)
    ]
    bins = [f"Bin {i}" for i in range(BINS)]
    return pd.DataFrame(rows, columns=["Tensor", "Stage", "From", "To", "Zeros", *bins])
