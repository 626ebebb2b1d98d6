"""The matrix itself: an image a stage, each cell a figure of the weights that lie there, or one
weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ui.charts.chart import Chart
from ui.charts.headlines import of_regions, of_zeros
from ui.charts.heatmap import DIVERGING, colour_bar, colour_limits
from ui.charts.template import layout
from ui.format import count
from ui.theme import LIGHT

FIGURES = {  # of a cell -> what the colours mean
    "mean": "Mean |weight|",
    "max": "Largest |weight|",
    "zeros": "Share of exact zeros, %",
    "change": "Change of mean |weight| from dense",
    "weight": "Weight",
}
SIGNED = ("change", "weight")
GAP_X, GAP_Y = 0.06, 0.14
EYE = {"x": -1.25, "y": -1.35, "z": 0.85}
HEIGHT = 0.45  # of a landscape, in widths


@dataclass(frozen=True)
class MatrixImage:
    """One figure of all cells [rows, columns] of a matrix, or of a part of it, at one stage.

    Attributes:
        shape: channels [out, in] that the image spans.
        first: the channels [out, in] it begins with.
    """

    label: str
    values: np.ndarray
    shape: tuple[int, int]
    first: tuple[int, int] = (0, 0)

    def centres(self, side: int) -> np.ndarray:
        """The channels in the middle of the cells: of outputs (0) or inputs (1)."""
        step = self.shape[side] / self.values.shape[side]
        return self.first[side] + (np.arange(self.values.shape[side]) + 0.5) * step - 0.5

    def begins(self, side: int) -> np.ndarray:
        """The first channel of each cell."""
        cells = self.values.shape[side]
        return self.first[side] + np.arange(cells) * self.shape[side] // cells


def matrix_chart(images: Sequence[MatrixImage], figure: str) -> Chart:
    """`matrix_images` with its figures as a table, a note and a headline.

    Args:
        figure: a key of `FIGURES`.
    """
    first = images[0]
    if figure == "weight":
        return _weights_chart(images)
    cell = [math.ceil(n / cells) for n, cells in zip(first.shape, first.values.shape, strict=True)]
    each = "a cell each" if cell == [1, 1] else f"about {cell[0]} × {cell[1]} weights a cell"
    outputs, inputs = first.shape
    note = (
        f"n = {count(outputs * inputs)} weights, {outputs:,} outputs × {inputs:,} inputs, {each}."
    )
    headline = of_regions(images[-1].label, FIGURES[figure], images[-1].values)
    return Chart(matrix_images(images, figure), matrix_frame(images), note, headline=headline)


def _weights_chart(images: Sequence[MatrixImage]) -> Chart:
    """Single weights of a part of the matrix."""
    first = images[0]
    spans = [
        f"{name} {begin} to {begin + size - 1}"
        for name, begin, size in zip(("outputs", "inputs"), first.first, first.shape, strict=True)
    ]
    note = f"n = {count(first.values.size)} weights: {', '.join(spans)}, as they are saved."
    zeros = [(image.label, float((image.values == 0).mean())) for image in images]
    headline = of_zeros(zeros).replace("the weights", "these weights")
    return Chart(matrix_images(images, "weight"), matrix_frame(images), note, headline=headline)


def matrix_images(images: Sequence[MatrixImage], figure: str) -> go.Figure:
    """The stages side by side, on the same colours; output channels from top to bottom."""
    diverging = figure in SIGNED
    values = np.concatenate([image.values.ravel() for image in images])
    low, high = colour_limits(values, even=diverging)
    if figure == "zeros":
        low, high = 0.0, max(float(values.max()), 1.0)
    columns = min(len(images), 2)
    rows = math.ceil(len(images) / columns)
    drawn = make_subplots(
        rows, columns, horizontal_spacing=GAP_X, vertical_spacing=GAP_Y,
        shared_xaxes="all", shared_yaxes="all",
        specs=[[{} if row * columns + column < len(images) else None for column in range(columns)]
               for row in range(rows)],
    )  # fmt: skip
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        at = {"row": row + 1, "col": column + 1}
        drawn.add_trace(_heat(image, figure), **at)
        across, down = (next(axes(**at)) for axes in (drawn.select_xaxes, drawn.select_yaxes))
        across.showticklabels = place + columns >= len(images)
        drawn.add_annotation(
            text=image.label, x=across.domain[0], y=down.domain[1], xref="paper", yref="paper",
            yanchor="bottom", font={"color": LIGHT.text},
        )  # fmt: skip
    drawn.update_xaxes(showgrid=False, nticks=5, constrain="domain")
    drawn.update_yaxes(showgrid=False, nticks=5, autorange="reversed")
    colours: dict[str, Any] = {
        "cmin": low, "cmax": high, "colorscale": DIVERGING if diverging else "cividis",
        "colorbar": colour_bar(FIGURES[figure]) | {"y": 1.1},
    }  # fmt: skip
    looks = layout(view=f"matrix/{figure}", coloraxis=colours, meta={"linked": True})
    return drawn.update_layout(looks, margin={"l": 36, "t": 72, "b": 24})


def matrix_frame(images: Sequence[MatrixImage]) -> pd.DataFrame:
    """Every stage as a matrix: a row for each row of its cells, a column for each column of them,
    by their first channels."""
    frames = []
    for image in images:
        heads = [f"Input {n}" for n in image.begins(1)]
        cells = pd.DataFrame(image.values, columns=heads)
        cells.insert(0, "From output", image.begins(0))
        cells.insert(0, "Stage", image.label)
        frames.append(cells)
    return pd.concat(frames, ignore_index=True)


def _short(values: np.ndarray) -> np.ndarray:
    """Rounded to four significant digits, which are few characters on their way to the browser.
    Plotly looks at every item of nested lists, and not of arrays; numbers of such an array stay
    readable there."""
    exact = values.astype(float)
    sizes = np.where(exact, np.abs(exact), 1.0)
    unit = 10.0 ** (3 - np.floor(np.log10(sizes)))
    rounded: np.ndarray = (np.round(exact * unit) / unit).astype(object)
    return rounded


def _heat(image: MatrixImage, figure: str) -> go.Heatmap:
    places = [[f"{y},{x}" for x in image.begins(1)] for y in image.begins(0)]
    return go.Heatmap(
        x=image.centres(1).round(1).tolist(), y=image.centres(0).round(1).tolist(),
        z=_short(image.values),
        coloraxis="coloraxis", name=image.label,
        customdata=np.array(places, object),
        hovertemplate=f"{image.label}, output %{{y:.0f}}, input %{{x:.0f}}: %{{z:.3g}}"
        f"{' %' if figure == 'zeros' else ''}<extra></extra>",
    )  # fmt: skip


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
