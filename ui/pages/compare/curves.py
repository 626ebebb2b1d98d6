"""One curve of several runs over each other."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from backend.metric_key import MetricKey
from backend.store import frames
from jobs.metrics import ERROR, axis_title, metric
from ui.charts.chart import Chart
from ui.charts.lines import Line, curves_frame, line_chart, reduced_note, y_title
from ui.pages.compare.comparison import RunComparison
from ui.runs.results import display_units, stages_of

MAX_ROWS = 2000  # of the table
SMOOTHING = {"none": 0.0, "some": 0.6, "strong": 0.9}


Points = dict[str, dict[MetricKey, pd.DataFrame]]  # run -> curve -> its points


def curves_of(comparison: RunComparison) -> tuple[Points, dict[str, MetricKey]]:
    """The points of every run; the curves of more than a single point that one or more of them has
    recorded, by name."""
    found = {run: frames.by_key(display_units(frames.shown_curves(run))) for run in comparison.runs}
    keys = (key for lines in found.values() for key, points in lines.items() if len(points) > 1)
    return found, {str(key): key for key in keys}


def chosen_curve(
    comparison: RunComparison, offered: Mapping[str, MetricKey], wanted: str | None
) -> MetricKey:
    """The wanted curve, else the error of the stage the baseline kept, else the first."""
    kept = str(replace(ERROR, stage=comparison.base.figures.kept or ""))
    first = next(iter(offered))
    return offered[next(name for name in (wanted, kept, first) if name and name in offered)]


def curve_chart(
    comparison: RunComparison,
    found: Points,
    key: MetricKey,
    *,
    log_y: bool,
    smoothing: str | None,
) -> Chart:
    drawn = {run: lines[key] for run, lines in found.items() if key in lines}
    x_title, strokes = axis_title(key.axis), comparison.strokes
    figure = line_chart(
        [Line(run, points, strokes[run]) for run, points in drawn.items()], view=f"{key}{log_y}",
        x_title=x_title, y_title=y_title(key), log_y=log_y,
        smoothing=SMOOTHING.get(smoothing or "", 0.0),
    )  # fmt: skip
    figure.update_layout(showlegend=True)  # a single line, too, has to say whose it is
    frame = curves_frame(drawn, x_title).head(MAX_ROWS)
    lengths = ", ".join(f"{run} {len(points):,}" for run, points in drawn.items())
    left_out = sum(int((points["value"] <= 0).sum()) for points in drawn.values()) if log_y else 0
    hidden = f" Not shown on a log axis: {left_out:,} values of 0 or less." if left_out else ""
    reduced = next(filter(None, map(reduced_note, drawn.values())), "")
    return Chart(figure, frame, f"n = {lengths} points.{hidden}{reduced}")


def curve_label(key: MetricKey, comparison: RunComparison) -> str:
    """What a curve is called: "Relative output error · Second pruning (SDS)"."""
    stages = {
        s: row.figures.label(s)
        for row in comparison.rows
        for s in stages_of(row.job) or row.figures.stages
    }
    parts = (metric(replace(key, series="")).title, stages.get(key.stage, key.stage), key.series)
    return " · ".join(filter(None, parts))
