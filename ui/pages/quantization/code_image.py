"""The integers a matrix is stored as, around one group, and what became of the zeros of a pruned
model."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.export.code_tiles import CodeTile
from ui.charts.chart import Chart
from ui.charts.heatmap import DIVERGING, colour_bar
from ui.charts.template import axis, layout
from ui.format import count, share
from ui.theme import LIGHT

ROWS, COLUMNS = 48, 128  # of the image, at most
PRUNED = 0.01  # share of zeros in the weights before that makes them pruned


@dataclass(frozen=True)
class CodeImage:
    """Codes of a region, and its weights before quantization [rows, columns], if available."""

    tile: CodeTile
    before: np.ndarray | None

    @property
    def zeros(self) -> np.ndarray | None:
        """Mask of the zeros before quantization, if the model was pruned."""
        if self.before is None or float((self.before == 0).mean()) < PRUNED:
            return None
        zeros: np.ndarray = self.before == 0
        return zeros


def code_image_chart(image: CodeImage) -> Chart:
    """Codes as colours. Of a pruned model, kept zeros are grey, lost zeros are crossed."""
    tile, levels, zeros = image.tile, image.tile.levels, image.zeros
    (top, bottom), (left, right) = tile.region.rows, tile.region.columns
    used = np.unique(tile.codes)
    note = (
        f"n = {count(levels.size)} weights, outputs {top} to {bottom - 1}, inputs {left} to "
        f"{right - 1}; {len(used)} of {2**tile.bits} codes occur here."
    )
    frame = pd.DataFrame(tile.codes, columns=[f"Input {n}" for n in range(left, right)])
    frame.insert(0, "Output", [str(n) for n in range(top, bottom)])
    x, y = [*range(left, right)], [*range(top, bottom)]
    reach = max(1, int(np.abs(levels).max()))
    before = None
    if image.before is not None:
        before = [[f"<br>before: {value:.4g}" for value in row] for row in image.before]
    heat = go.Heatmap(
        x=x, y=y, z=levels.tolist(), customdata=tile.codes.tolist(), zmin=-reach, zmax=reach,
        colorscale=DIVERGING, colorbar=colour_bar("Steps from 0 (code − zero-point)"),
        text=before, name="Code",
        hovertemplate="Output %{y}, input %{x}<br>code %{customdata}, %{z:+.4~g} steps from 0"
        "%{text}<extra></extra>",
    )  # fmt: skip
    traces: list[go.Heatmap | go.Scatter] = [heat]
    if zeros is not None:
        traces += _fate_of_zeros(x, y, zeros, levels)
    looks = layout(
        view=f"codes/{tile.region}", xaxis=axis("Input channel", showgrid=False, nticks=8),
        yaxis=axis("Output channel", showgrid=False, autorange="reversed", nticks=8),
    )  # fmt: skip
    figure = go.Figure(traces, looks | {"margin": {"t": 56}})
    return Chart(figure, frame, note, headline=_headline(image))


def _headline(image: CodeImage) -> str:
    levels, zeros = image.tile.levels, image.zeros
    if zeros is None:
        return f"{share(float((levels == 0).mean()), 0)} of these weights are stored as zero"
    kept = int((levels[zeros] == 0).sum())
    many = int(zeros.sum())
    if kept == many:
        return f"All {count(many)} pruned weights here are still zero"
    return f"{count(many - kept)} of {count(many)} pruned weights here are no longer zero"


def _fate_of_zeros(
    x: list[int], y: list[int], zeros: np.ndarray, levels: np.ndarray
) -> list[go.Heatmap | go.Scatter]:
    kept = np.where(zeros & (levels == 0), 1.0, np.nan)
    grey = [[0.0, LIGHT.muted], [1.0, LIGHT.muted]]
    drawn: list[go.Heatmap | go.Scatter] = [
        go.Heatmap(
            x=x, y=y, z=[[None if np.isnan(v) else v for v in row] for row in kept],
            colorscale=grey, opacity=0.4, showscale=False, hoverinfo="skip",
            name="Pruned, still zero",
        )
    ]  # fmt: skip
    rows, columns = np.nonzero(zeros & (levels != 0))
    if len(rows):
        drawn.append(
            go.Scatter(
                x=[x[c] for c in columns], y=[y[r] for r in rows], mode="markers",
                marker={"symbol": "x-thin-open", "size": 6, "color": LIGHT.text}, hoverinfo="skip",
                name="Pruned, no longer zero",
            )
        )  # fmt: skip
    return drawn
