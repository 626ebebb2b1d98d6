"""Perplexity of the stages of several runs, in the colours of the comparison."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from jobs.metrics import PERPLEXITY
from ui.charts.chart import Chart
from ui.charts.dots import dots, in_lines, log_span, rows_axis, symbol
from ui.charts.template import layout, legend_row, log_axis
from ui.format import number
from ui.runs.results import RunResults
from ui.theme import LineStyle

SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x")


def stage_dots(
    results: Mapping[str, RunResults],
    drawn: Mapping[str, LineStyle],
    labels: Mapping[str, str],
    note: str = "",
) -> Chart:
    """Perplexity by stage (rows, `labels` from top to bottom) and run (colour and shape); all
    measured on the same text."""
    frame = pd.DataFrame(
        {"Stage": label, **{run: r.value(stage, PERPLEXITY) for run, r in results.items()}}
        for stage, label in labels.items()
    ).dropna(how="all", subset=[*results])
    rows = frame["Stage"].map(in_lines)
    values = [value for run in results for value in frame[run].dropna()]
    traces = [
        _dots(run, rows, frame[run].dropna(), drawn[run], SHAPES[place % len(SHAPES)])
        for place, run in enumerate(results)
    ]
    x = log_axis("Perplexity", log_span(values), showgrid=False, tickangle=0)
    looks = layout(view="stages", xaxis=x, yaxis=rows_axis([*rows]), **legend_row())
    return Chart(go.Figure(traces, looks), frame, note)


def _dots(
    run: str, labels: pd.Series, values: pd.Series, stroke: LineStyle, shape: str
) -> go.Scatter:
    rows = labels[values.index]
    hover = [
        f"<b>{run}</b><br>{row}<br>Perplexity {number(value)}"
        for row, value in zip(rows, values, strict=True)
    ]
    return dots(values.tolist(), rows, stroke.colour, symbol(stroke, shape), hover, name=run)
