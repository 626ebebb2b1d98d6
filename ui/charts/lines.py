"""Curves of a run while it works, such as the error of each layer by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ui.charts.template import axis, layout, legend
from ui.theme import OKABE_ITO, STAGE_COLOURS, LineStyle

MARKED = 60  # up to so many points each is marked


def curves(
    points: pd.DataFrame,
    names: Sequence[str],
    *,
    labels: Mapping[str, str] | None = None,
    x_title: str = "Step",
    y_title: str = "",
    log_y: bool = False,
) -> go.Figure:
    """One line a name. A name that ends in "/STAGE" has that stage's colour.

    Args:
        points: as `frames.curves` returns them: name, step, value.
        labels: name or stage -> label.
    """
    lines = [_line(points[points["name"] == n], n, i, labels or {}) for i, n in enumerate(names)]
    y_axis = axis(f"{y_title} (log axis)".strip() if log_y else y_title, nticks=5)
    return go.Figure(
        lines,
        layout(
            view="|".join(names) + str(log_y),
            top=32,
            xaxis=axis(x_title, showgrid=False),
            yaxis=y_axis | ({"type": "log"} if log_y else {"rangemode": "tozero"}),
            hovermode="x unified",
            showlegend=len(names) > 1,
            legend=legend(orientation="h"),
        ),
    )


def _line(points: pd.DataFrame, name: str, place: int, labels: Mapping[str, str]) -> go.Scatter:
    stage = name.rsplit("/", 1)[-1]
    stroke = STAGE_COLOURS.get(stage) or LineStyle(OKABE_ITO[place % len(OKABE_ITO)])
    label = labels.get(name) or labels.get(stage) or name
    return go.Scatter(
        x=points["step"].tolist(),
        y=points["value"].tolist(),
        name=label,
        mode="lines+markers" if len(points) <= MARKED else "lines",
        line={"color": stroke.colour, "dash": stroke.dash, "width": 2},
        marker={"size": 5},
        hovertemplate="%{y:.4g}<extra>%{fullData.name}</extra>",
    )
