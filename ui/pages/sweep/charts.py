"""A sweep: one row a combination, one dot a stage, the spread over seeds as a bar through it."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from jobs.metrics import Metric
from jobs.sweep import SweepRow
from jobs.wording import extent
from ui.charts.chart import Chart
from ui.charts.dots import dots, in_lines, log_span, rows_axis, rows_height, symbol
from ui.charts.template import axis, layout, legend_row, log_axis
from ui.format import esc, number
from ui.theme import stage_style

DENSE = "dense"
HEIGHT, AROUND = 420, 152  # pixels: reserved for the chart; what is not rows
MIN_HEIGHT = 320  # pixels, so that a phone shows the whole legend
LOG_FROM = 4.0  # largest over smallest from which a log axis is worth it
SPREAD = "±: sample standard deviation over seeds; none for a single run."


def sweep_means(
    rows: Sequence[SweepRow], shown: Metric, labels: Mapping[str, str], headline: str = ""
) -> Chart:
    """Mean of one metric (of which `rows` are) by combination and stage."""
    scale = shown.scale
    columns = ["Combination", "Stage", shown.title, "±", "n"]
    figures = [
        (
            row.label,
            labels.get(row.stage, row.stage),
            scale * row.mean,
            None if row.spread is None else scale * row.spread,
            row.n,
        )
        for row in rows
    ]
    frame = pd.DataFrame(figures, columns=columns)
    combinations = {repr(row.values): in_lines(esc(row.label)) for row in rows}
    drawn = frame.assign(
        stage=[row.stage for row in rows], place=[combinations[repr(row.values)] for row in rows]
    )
    x, values = axis(shown.title, showgrid=False), frame[shown.title]
    if values.min() > 0 and values.max() / values.min() >= LOG_FROM:
        x = log_axis(shown.title, log_span(values.tolist()), showgrid=False, tickangle=0)
    looks = layout(
        view=shown.name,
        xaxis=x,
        yaxis=rows_axis([*combinations.values()]),
        **legend_row(top=56),
        more=rows_height(len(combinations), AROUND, MIN_HEIGHT) - HEIGHT,
    )
    traces = [_dots(group, shown.title) for _, group in drawn.groupby("stage", sort=False)]
    note = f"Runs per dot: {extent([row.n for row in rows], str, '–')}. {SPREAD}"
    return Chart(go.Figure(traces, looks), frame, note, headline=headline)


def _dots(rows: pd.DataFrame, title: str) -> go.Scatter:
    stage, label = rows["stage"].iloc[0], rows["Stage"].iloc[0]
    stroke, spreads = stage_style(stage), rows["±"].astype(float)
    is_dense = stage == DENSE  # a tick, so that a stage as good as dense does not hide it
    said = zip(rows["Combination"], rows["Stage"], rows[title], spreads, rows["n"], strict=True)
    return dots(
        rows[title].tolist(),
        rows["place"],
        stroke.colour,
        "line-ns" if is_dense else symbol(stroke),
        [_hover(*row) for row in said],
        size=22 if is_dense else 10,
        name=label,
        error_x={"array": spreads.fillna(0.0).tolist(), "color": stroke.colour},
    )


def _hover(combination: str, label: str, mean: float, spread: float, n: int) -> str:
    more = "" if pd.isna(spread) else f" ± {number(spread, 2)}"
    return f"<b>{esc(combination)}</b><br>{label}: {number(mean)}{more}<br>n = {n} runs"
