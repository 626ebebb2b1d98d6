"""The matrix as a landscape: the last of the chosen stages in three dimensions, to be turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from ui.charts.heatmap import DIVERGING, colour_bar, colour_limits
from ui.charts.template import layout
from ui.pages.weights.tensor.matrix import FIGURES, SIGNED, MatrixImage
from ui.theme import LIGHT

EYE = {"x": -1.25, "y": -1.35, "z": 0.85}
HEIGHT = 0.45  # of the landscape, in widths


def matrix_surface(image: MatrixImage, figure: str) -> go.Figure:
    """Heights and colours are the same figure, a key of `FIGURES`."""
    even = figure in SIGNED
    low, high = colour_limits(image.values.ravel(), even=even)
    surface = go.Surface(
        x=image.centres(1).round(1).tolist(), y=image.centres(0).round(1).tolist(),
        z=np.round(image.values.astype(float), 5).tolist(), cmin=low, cmax=high,
        colorscale=DIVERGING if even else "cividis", colorbar=colour_bar(FIGURES[figure]),
        name=image.label,
        hovertemplate="Output %{y:.0f}, input %{x:.0f}: %{z:.3g}<extra></extra>",
    )  # fmt: skip
    scene = {
        "xaxis": _axis("Input channel"),
        "yaxis": _axis("Output channel") | {"autorange": "reversed"},
        "zaxis": _axis(FIGURES[figure]),
        "aspectmode": "manual", "aspectratio": {"x": 1, "y": 1, "z": HEIGHT},
        "camera": {"eye": EYE},
    }  # fmt: skip
    looks = layout(view=f"surface/{figure}", scene=scene)
    return go.Figure(surface, looks | {"margin": {"t": 56, "l": 0, "r": 0, "b": 0}})


def _axis(title: str) -> dict[str, Any]:
    small = {"size": 12, "color": LIGHT.muted}
    return {
        "title": {"text": title, "font": small}, "tickfont": small, "nticks": 5,
        "gridcolor": LIGHT.line, "backgroundcolor": LIGHT.paper, "showspikes": False,
    }  # fmt: skip
