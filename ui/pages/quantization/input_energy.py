"""Errors of the weights against the inputs they meet: where rounding hurts.

Of group k of the inputs of a layer

    x_k  root mean square of its inputs over the calibration tokens
    e_k  root mean square of W_quantised - W_dense over its weights
    share_k = n_k (x_k e_k)^2 / sum of that over all groups

the last is its share of the expected output error if inputs were uncorrelated (the diagonal of the
Hessian that GPTQ uses, Frantar et al. 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.sensitivity.profile import spearman
from ui.charts.chart import Chart
from ui.charts.template import layout, legend_row, log_axis
from ui.format import count, number, of_unit, share
from ui.theme import LIGHT, stage_style

X, Y = "Root mean square of the inputs", "Root mean square error of the weights"
ROOM = 0.06  # decades beside the outermost points


@dataclass(frozen=True)
class InputGroups:
    """x_k and e_k of every group of the inputs of one tensor, [groups]."""

    tensor: str
    block: int
    inputs: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, tensor: str, block: int, energy: np.ndarray, error: np.ndarray) -> "InputGroups":
        groups = error.shape[1]
        inputs = np.sqrt(energy.astype(float).reshape(groups, -1).mean(1))
        return cls(tensor, block, inputs, np.sqrt((error.astype(float) ** 2).mean(0)))

    @property
    def shares(self) -> np.ndarray:
        """Shares of the expected output error, [groups]; they add up to 1."""
        product = (self.inputs * self.errors) ** 2
        shares: np.ndarray = product / (product.sum() or 1.0)
        return shares


def input_energy_chart(every: Sequence[InputGroups], tensor: str, label: str, stage: str) -> Chart:
    """Error over inputs on log axes, one point a group, with its tensor as `customdata`."""
    own = next(one for one in every if one.tensor == tensor)
    k = int(own.shares.argmax())
    times = own.inputs[k] / float(np.median(own.inputs))
    headline = (
        f"{label}: {share(own.shares[k], 0)} of the expected output error comes from group {k}, "
        f"whose inputs are {of_unit(times, '×', 2)} the median"
    )
    x, y = (np.concatenate([getattr(one, name) for one in every]) for name in ("inputs", "errors"))
    rho = spearman(x, y) if len(x) > 2 else None
    blocks = f"{len(every)} block{'' if len(every) == 1 else 's'}"
    note = f"n = {count(len(x))} groups of {blocks}, rank correlation {number(rho, 2)}."
    frame = pd.DataFrame(
        {
            "Group": map(str, range(len(own.inputs))),
            X: own.inputs,
            Y: own.errors,
            "Share of the expected output error, %": 100 * own.shares,
        }
    )
    others = [one for one in every if one is not own]
    figure = go.Figure()
    if others:
        figure.add_trace(_points(others, "Same module in other blocks", LIGHT.muted, 4, 0.35))
    figure.add_trace(_points([own], "This tensor", stage_style(stage).colour, 9, 1.0))
    spans = []
    for values in (x, y):
        positive = values[values > 0] if (values > 0).any() else np.ones(1)
        logs = np.log10([positive.min(), positive.max()])
        spans.append([float(logs[0]) - ROOM, float(logs[1]) + ROOM])
    looks = layout(
        view=f"energy/{own.tensor}",
        xaxis=log_axis(X, spans[0]),
        yaxis=log_axis(Y, spans[1]),
        **legend_row(),
    )
    return Chart(figure.update_layout(looks), frame, note, headline=headline)


def _points(
    groups: Sequence[InputGroups], name: str, colour: str, size: int, opacity: float
) -> go.Scatter:
    said = [
        f"Block {one.block}, group {k}<br>inputs {x:.3g}, error {e:.3g}<br>"
        f"{100 * s:.1f} % of the expected output error"
        for one in groups
        for k, (x, e, s) in enumerate(zip(one.inputs, one.errors, one.shares, strict=True))
    ]
    return go.Scatter(
        x=np.concatenate([one.inputs for one in groups]).round(6).tolist(),
        y=[float(f"{e:.5g}") for one in groups for e in one.errors],
        customdata=[one.tensor for one in groups for _ in one.inputs],
        text=said,
        mode="markers",
        marker={"color": colour, "size": size, "opacity": opacity},
        name=name,
        hovertemplate="%{text}<extra></extra>",
    )
