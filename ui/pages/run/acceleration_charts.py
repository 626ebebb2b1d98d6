"""What zeros buy: bytes of the layers in the formats there are, and the speed of a product without
the zeros, relative to the dense one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from jobs.evaluation.report import PRUNED_FROM
from ui.charts.chart import Chart
from ui.charts.template import axis, category_axis, layout, log_axis, reference_line
from ui.format import share, size
from ui.theme import BLUE, stage_style

MEGA = 1e6
DENSE = "dense"


def format_sizes(sizes: Mapping[str, float], note: str = "") -> Chart:
    frame = pd.DataFrame(
        [(name, value / MEGA, 100 * value / sizes[DENSE]) for name, value in sizes.items()],
        columns=["Format", "Size, MB", "Of dense, %"],
    )
    labels = [
        f"<b>{name}</b><br>{size(v)}, {share(v / sizes[DENSE], 0)}" for name, v in sizes.items()
    ]
    colours = [stage_style(DENSE).colour if name == DENSE else BLUE for name in sizes]
    bars = go.Bar(
        x=frame["Size, MB"], y=labels, orientation="h", width=0.55, marker={"color": colours},
        hovertext=frame["Format"], hovertemplate="%{hovertext}: %{x:.4g} MB<extra></extra>",
    )  # fmt: skip
    width = axis("Megabytes", rangemode="tozero", showgrid=False)
    looks = layout(view="formats", xaxis=width, yaxis=category_axis())
    smallest = min(sizes, key=sizes.__getitem__)
    part = f"{share(sizes[smallest] / sizes[DENSE], 0)} of the dense size"
    told = f"As {smallest} the linear layers take {part}"
    headline = told if smallest != DENSE else "Too few zeros for a sparse format to be smaller"
    return Chart(go.Figure(bars, looks), frame, note, headline=headline)


def sparse_products(
    zeros: Sequence[float], speed_up: Sequence[float], own: float, note: str = ""
) -> Chart:
    """Speed-up of a sparse over the dense product, by sparsity (`zeros`, ascending); the model's
    `own` sparsity is marked unless 0."""
    frame = pd.DataFrame({"Zeros, %": [100 * z for z in zeros], "Speed-up, ×": [*speed_up]})
    line = go.Scatter(
        x=frame["Zeros, %"], y=frame["Speed-up, ×"], mode="lines+markers",
        line={"color": BLUE}, marker={"size": 7}, cliponaxis=False,
        hovertemplate="%{x:.4g} % zeros: %{y:.3g} × the dense speed<extra></extra>",
    )  # fmt: skip
    ends = [math.log10(min(*speed_up, 1.0) / 1.15), math.log10(max(*speed_up, 1.0) * 1.15)]
    above = {"yanchor": "bottom"}  # `y` of a label on a log axis is a logarithm
    even = {"text": "as fast as dense", "xref": "paper", "x": 1, "xanchor": "right", "y": 0}
    shapes, labels, places = [reference_line(y=1)], [even | above], range(len(zeros))
    at = max(places, key=speed_up.__getitem__)
    if own >= PRUNED_FROM:
        at = min(places, key=lambda i: abs(zeros[i] - own))
        here = {"text": f"this model, {share(own, 0)}", "x": 100 * own, "yref": "paper", "y": 1}
        shapes.append(reference_line(x=100 * own, dash="dot"))
        labels.append(here | above)
    looks = layout(
        view="products", top=24, shapes=shapes, annotations=labels,
        xaxis=axis("Zeros, %", showgrid=False), yaxis=log_axis("Speed-up over dense", ends, " ×"),
    )  # fmt: skip
    times = f"{speed_up[at]:.2f} times as fast as dense"
    headline = f"At {share(zeros[at], 0)} zeros, a product without them is {times}"
    return Chart(go.Figure(line, looks), frame, note, headline=headline)
