"""Several runs in one picture: the perplexity of their stages, and a curve of each.

A run has one colour, by its place among the runs compared; the baseline is grey and dashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ui.charts.dots import dots, in_lines, log_span, rows_axis, symbol
from ui.charts.lines import Line, curves_frame, line_chart
from ui.charts.template import layout, legend, log_axis
from ui.format import number
from ui.runs.results import RunResults
from ui.theme import LIGHT, OKABE_ITO, YELLOW, LineStyle
from ui.widgets.panel import Chart

MAX_ROWS = 2000  # of the table of a curve
METRIC = "perplexity"
SMOOTHING = {"none": 0.0, "some": 0.6, "strong": 0.9}
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x")
COLOURS = [c for c in OKABE_ITO if c != YELLOW]  # yellow cannot be seen on white
BASELINE = LineStyle(LIGHT.muted, "dash")


def strokes(runs: Sequence[str], base: str) -> dict[str, LineStyle]:
    """Run -> how it is drawn everywhere in a comparison."""
    others = [run for run in runs if run != base]
    coloured = {run: LineStyle(COLOURS[i % len(COLOURS)]) for i, run in enumerate(others)}
    return {run: coloured.get(run, BASELINE) for run in runs}


def overlaid(
    points: Mapping[str, pd.DataFrame],
    drawn: Mapping[str, LineStyle],
    *,
    x_title: str,
    note: str = "",
    **options: object,
) -> Chart:
    """One curve of several runs.

    Args:
        points: run -> its points, columns step and value.
        options: of `line_chart`.
    """
    lines = [Line(run, rows, drawn[run]) for run, rows in points.items()]
    figure = line_chart(lines, x_title=x_title, **options)  # type: ignore[arg-type]
    figure.update_layout(showlegend=True)  # a single line, too, has to say whose it is
    together = pd.concat([rows.assign(name=run) for run, rows in points.items()])
    frame = curves_frame(together, {run: run for run in points}, x_title)
    return Chart(figure, frame.head(MAX_ROWS), note)


def stage_dots(
    results: Mapping[str, RunResults],
    drawn: Mapping[str, LineStyle],
    labels: Mapping[str, str],
    note: str = "",
) -> Chart:
    """Perplexity of every stage of every run: a row a stage, a colour and a shape a run.

    Args:
        results: run -> its results, all measured on the same text.
        labels: stage -> label, from top to bottom.
    """
    frame = pd.DataFrame(
        {"Stage": label, **{run: r.value(stage, METRIC) for run, r in results.items()}}
        for stage, label in labels.items()
    ).dropna(how="all", subset=[*results])
    rows = frame["Stage"].map(in_lines)
    figure = go.Figure(
        [
            _dots(run, rows, frame[run], drawn[run], SHAPES[place % len(SHAPES)])
            for place, run in enumerate(results)
        ],
        layout(
            view="stages",
            top=32,
            xaxis=log_axis("Perplexity", log_span(_known(frame, results)), showgrid=False,
                           tickangle=0),
            yaxis=rows_axis([*rows]),
            showlegend=True,
            legend=legend(orientation="h"),
        ),
    )  # fmt: skip
    return Chart(figure, frame, note)


def _known(frame: pd.DataFrame, runs: Mapping[str, RunResults]) -> list[float]:
    return [value for run in runs for value in frame[run].dropna()]


def _dots(
    run: str, rows: pd.Series, values: pd.Series, stroke: LineStyle, shape: str
) -> go.Scatter:
    known = values.dropna()
    hover = [
        f"<b>{run}</b><br>{row}<br>Perplexity {number(value)}"
        for row, value in zip(rows[known.index], known, strict=True)
    ]
    shape = symbol(stroke, shape)
    return dots(known.tolist(), rows[known.index], stroke.colour, shape, hover, name=run)
