"""Training inside the grid: magnitudes of all groups, of one group, and the use of codes."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from backend.statistics.tensors import FAN
from ui.charts.template import axis, layout, legend_row, reference_line, tint
from ui.format import NONE, count
from ui.theme import LIGHT, stage_style


def magnitude_bands(quantiles: Mapping[str, Mapping[int, float]], stage: str) -> go.Figure:
    """Magnitudes of all groups: bands of quantiles ("p05" -> step -> value) and the median."""
    colour = stage_style(stage).colour
    lines, names = [], [*FAN]
    pairs = zip(names[: len(names) // 2], names[: len(names) // 2 : -1], strict=True)
    for place, (low, high) in enumerate(pairs, 1):
        upper, lower = quantiles.get(high, {}), quantiles.get(low, {})
        steps = sorted(upper.keys() & lower.keys())
        name = f"{int(low[1:])} to {int(high[1:])} % of groups"
        fill = tint(colour, 0.12 * place)  # the inner bands are darker, also in the legend
        lines.append(_edge([*steps], [lower[s] for s in steps], None, name, fill))
        lines.append(_edge([*steps], [upper[s] for s in steps], "tonexty", name, fill))
    middle = quantiles.get("p50", {})
    lines.append(
        go.Scatter(
            x=sorted(middle),
            y=[middle[s] for s in sorted(middle)],
            name="Median",
            mode="lines",
            line={"color": colour},
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
    colour = stage_style(stage).colour
    looks_of = [
        {"color": tint(LIGHT.muted, 0.5)},
        {"color": tint(colour, 0.0 if len(at) > 1 else 0.5), "line": {"color": colour, "width": 2}},
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
