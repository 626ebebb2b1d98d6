"""Training inside the grid: magnitudes of all groups, of one group, and the use of codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.sensitivity.profile import spearman
from backend.statistics.tensors import FAN
from ui.charts.chart import Chart, axis, layout, legend_row, log_axis, reference_line, tint
from ui.format import NONE, count, number, of_unit, share
from ui.theme import LIGHT, stage_style

X, Y = "Root mean square of the inputs", "Root mean square error of the weights"
ROOM = 0.06  # decades beside the outermost points


def magnitude_bands(quantiles: Mapping[str, Mapping[int, float]], stage: str) -> go.Figure:
    """Magnitudes of all groups: bands of quantiles ("p05" -> step -> value) and the median."""
    color = stage_style(stage).color
    lines, names = [], [*FAN]
    pairs = zip(names[: len(names) // 2], names[: len(names) // 2 : -1], strict=True)
    for place, (low, high) in enumerate(pairs, 1):
        upper, lower = quantiles.get(high, {}), quantiles.get(low, {})
        steps = sorted(upper.keys() & lower.keys())
        name = f"{int(low[1:])} to {int(high[1:])} % of groups"
        fill = tint(color, 0.12 * place)  # the inner bands are darker, also in the legend
        lines.append(_edge([*steps], [lower[s] for s in steps], None, name, fill))
        lines.append(_edge([*steps], [upper[s] for s in steps], "tonexty", name, fill))
    middle = quantiles.get("p50", {})
    lines.append(
        go.Scatter(
            x=sorted(middle),
            y=[middle[s] for s in sorted(middle)],
            name="Median",
            mode="lines",
            line={"color": color},
            hovertemplate="Median %{y:.5f}<extra></extra>",
        )
    )
    looks = layout(
        view=f"{stage}/fan",
        hovermode="x unified",
        xaxis=axis("Step", showgrid=False),
        yaxis=axis("Magnitude m", nticks=6),
        shapes=[reference_line(y=1, layer="below")],
        **legend_row(),
    )
    return go.Figure(lines, looks)


def _edge(
    steps: list[int], values: list[float], fill: str | None, name: str, tinted: str
) -> go.Scatter:
    return go.Scatter(
        x=steps,
        y=values,
        name=name,
        legendgroup=name,
        mode="lines",
        fill=fill,
        showlegend=fill is not None,
        fillcolor=tinted,
        line={"width": 0, "color": tinted},
        hovertemplate="%{y:.5f}<extra>" + name + "</extra>",
    )


def code_usage(usage: Mapping[int, np.ndarray], stage: str) -> go.Figure:
    """Frequency of each code of one tensor, [2^bits], after training as an outline over before."""
    at = sorted({min(usage), max(usage)}) if usage else []
    color = stage_style(stage).color
    looks_of = [
        {"color": tint(LIGHT.muted, 0.5)},
        {"color": tint(color, 0.0 if len(at) > 1 else 0.5), "line": {"color": color, "width": 2}},
    ]
    bars = [
        go.Bar(
            x=list(range(len(usage[step]))),
            y=(100 * usage[step] / usage[step].sum()).tolist(),
            customdata=usage[step].tolist(),
            name=f"Step {step}",
            marker=look,
            hovertemplate=f"Step {step}: %{{y:.2f}} %, n = %{{customdata:,.0f}}<extra></extra>",
        )
        for step, look in zip(at, looks_of[-len(at) :], strict=True)
    ]
    looks = layout(
        view=f"{stage}/codes",
        bargap=0.15,
        barmode="overlay",
        hovermode="x unified",
        xaxis=axis("Code", showgrid=False, nticks=16),
        yaxis=axis("Share of weights, %"),
        **legend_row() | {"showlegend": len(bars) > 1},
    )
    return go.Figure(bars, looks)


def code_usage_headline(usage: Mapping[int, np.ndarray]) -> str:
    bits, carried = _entropy(usage[max(usage)])
    return f"The codes carry {carried} of {bits} bits each" if carried != NONE else ""


def _entropy(counts: np.ndarray) -> tuple[int, str]:
    """Bits of a code, and their entropy as text."""
    used = counts[counts > 0] / counts.sum()
    entropy = float(-(used * np.log2(used)).sum()) if len(used) else float("nan")
    return int(np.log2(len(counts))), f"{entropy:.2f}" if len(used) else NONE


def code_usage_note(usage: Mapping[int, np.ndarray]) -> str:
    if not usage:
        return ""
    last = usage[max(usage)]
    bits, carried = _entropy(last)
    return (
        f"n = {count(int(last.sum()))} weights; {int((last > 0).sum())} of {len(last)} codes are "
        f"used and carry {carried} of {bits} bits each."
    )


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
    figure.add_trace(_points([own], "This tensor", stage_style(stage).color, 9, 1.0))
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
    groups: Sequence[InputGroups], name: str, color: str, size: int, opacity: float
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
        marker={"color": color, "size": size, "opacity": opacity},
        name=name,
        hovertemplate="%{text}<extra></extra>",
    )


@dataclass(frozen=True)
class GroupWeights:
    """One group, weight by weight: before and on the grid, whose points ascend."""

    dense: np.ndarray
    quantized: np.ndarray
    points: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        return self.quantized - self.dense

    @property
    def half(self) -> float:
        """Half a step of the grid, the largest error of rounding to nearest."""
        return float(self.points[1] - self.points[0]) / 2

    @property
    def beyond(self) -> int:
        """Number of dense weights more than half a step outside of the grid."""
        low, high = self.points[0] - self.half, self.points[-1] + self.half
        return int(((self.dense < low) | (self.dense > high)).sum())

    @property
    def elsewhere(self) -> int:
        """Number of weights that are not at the grid point nearest to their dense value."""
        nearest = self.points[np.abs(self.dense[:, None] - self.points).argmin(axis=1)]
        return int((np.abs(self.quantized - nearest) > self.half).sum())


def group_weights(group: GroupWeights, view: str, stage: str) -> go.Figure:
    """Change of each weight over its dense value; a band for rounding to nearest."""
    dots = go.Scatter(
        x=group.dense.tolist(),
        y=group.residual.tolist(),
        customdata=group.quantized.tolist(),
        mode="markers",
        marker={"size": 7, "color": stage_style(stage).color},
        hovertemplate="Dense %{x:.5f}<br>now %{customdata:.5f}<br>moved by %{y:.5f}<extra></extra>",
    )
    points = group.points.tolist()
    lines = [reference_line(x=point, dash="dot", layer="below") for point in points]
    band: dict[str, object] = {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": -group.half,
        "y1": group.half,
        "layer": "below",
        "fillcolor": tint(LIGHT.muted, 0.12),
        "line": {"width": 0},
    }
    ends = np.concatenate([group.points, group.dense])
    reach = [float(ends.min() - group.half), float(ends.max() + group.half)]
    across = axis("Dense weight (dotted: the grid)", showgrid=False, nticks=6, range=reach)
    down = axis("Moved by", nticks=5)
    return go.Figure(dots, layout(view=view, shapes=[band, *lines], xaxis=across, yaxis=down))


def group_weights_note(group: GroupWeights) -> str:
    words = f"n = {count(len(group.dense))} weights on {len(np.unique(group.quantized))} of "
    words += f"{len(group.points)} points; {group.beyond} of the dense ones beyond the ends, "
    return f"{words}{group.elsewhere} not at the nearest point."
