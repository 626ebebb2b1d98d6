"""Several runs in the colors of the comparison: perplexity of their stages, one curve over each
other, and the weights of one tensor as each left them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from backend.metric_key import MetricKey
from backend.statistics.tensors import RELATIVE_ERROR
from backend.store import frames, tensors
from jobs.metrics import BLOCK, ERROR, LOSS, MEMORY, PERPLEXITY, PROCESSOR, axis_title, metric
from ui.charts.chart import Chart, layout, legend_row, log_axis
from ui.charts.headlines import rivals_headline
from ui.charts.lines import (
    Line,
    curves_frame,
    dots,
    in_lines,
    line_chart,
    log_span,
    points_label,
    reduced_note,
    rows_axis,
    symbol,
)
from ui.charts.series import Series, overlay_chart
from ui.format import number
from ui.pages.compare.comparison import RunComparison
from ui.runs.results import RunResults, display_units, stages_of
from ui.runs.weights import DENSE, RunWeights, grid_description, kept_stage, weights_of
from ui.theme import LineStyle, stage_style

TAKEN = (MEMORY, PROCESSOR)
KEPT_ERROR = replace(ERROR, stage="kept stages")
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x")

Points = dict[str, dict[MetricKey, pd.DataFrame]]  # run -> curve -> its points


def stage_dots(
    results: Mapping[str, RunResults],
    drawn: Mapping[str, LineStyle],
    labels: Mapping[str, str],
    note: str = "",
) -> Chart:
    """Perplexity by stage (rows, `labels` from top to bottom) and run (color and shape); all
    measured on the same text."""
    frame = pd.DataFrame(
        {"Stage": label, **{run: r.value(stage, PERPLEXITY) for run, r in results.items()}}
        for stage, label in labels.items()
    ).dropna(how="all", subset=[*results])
    rows = frame["Stage"].map(in_lines)
    values = [value for run in results for value in frame[run].dropna()]
    traces = []
    for place, run in enumerate(results):
        measured, stroke = frame[run].dropna(), drawn[run]
        at = rows[measured.index]
        hover = [
            f"<b>{run}</b><br>{row}<br>Perplexity {number(value)}"
            for row, value in zip(at, measured, strict=True)
        ]
        shape = symbol(stroke, SHAPES[place % len(SHAPES)])
        traces.append(dots(measured.tolist(), at, stroke.color, shape, hover, name=run))
    x = log_axis("Perplexity", log_span(values), showgrid=False, tickangle=0)
    looks = layout(view="stages", xaxis=x, yaxis=rows_axis([*rows]), **legend_row())
    ends = {run: end for run, each in results.items() if (end := each.final())}
    best = min(ends, key=lambda run: ends[run], default="")
    told = f"{best} ends lowest, at a perplexity of {number(ends[best])}" if len(ends) > 1 else ""
    return Chart(go.Figure(traces, looks), frame, note, headline=told)


def curves_of(comparison: RunComparison) -> tuple[Points, dict[str, MetricKey]]:
    """The points of every run; the curves of more than a single point that two or more of them have
    recorded, by name: what the processes took last, else those of most runs first, of these the
    errors of the stage the baseline kept, and losses. Runs that kept different stages are compared
    by the errors of what each kept first."""
    found = {run: frames.by_key(display_units(frames.chart_curves(run))) for run in comparison.runs}
    kept_stages = {row.figures.kept for row in comparison.rows}
    if len(kept_stages) > 1 or not {*_shared(found)} - {*TAKEN}:
        for row in comparison.rows:
            weights, stage = weights_of(row.job.run), row.figures.kept
            if not weights or not stage or stage not in weights.stages:
                continue
            rows = weights.of_stage(stage).reindex(columns=["block", RELATIVE_ERROR])
            means = rows.dropna().groupby("block")[RELATIVE_ERROR].mean()
            if len(means) > 1:
                percent = metric(ERROR).scale * means.to_numpy(float)
                points = pd.DataFrame({"step": means.index, "value": percent})
                found[row.job.run][KEPT_ERROR] = points
    several, kept = _shared(found), replace(ERROR, stage=comparison.base.figures.kept or "")
    keys = sorted(
        several,
        key=lambda k: (
            k in TAKEN,
            k != KEPT_ERROR,
            -several[k],
            k != kept,
            k.family != LOSS.family,
        ),
    )
    return found, {str(key): key for key in keys}


def _shared(found: Points) -> dict[MetricKey, int]:
    """The curves of more than a single point that several runs have: key -> how many have them."""
    drawn = Counter(k for lines in found.values() for k, rows in lines.items() if len(rows) > 1)
    every = Counter(key for lines in found.values() for key in lines)
    return {key: many for key, many in drawn.items() if every[key] > 1}


def chosen_curve(offered: Mapping[str, MetricKey], wanted: str | None) -> MetricKey:
    """The wanted curve, else the first."""
    return offered.get(wanted or "") or next(iter(offered.values()))


def curve_chart(comparison: RunComparison, found: Points, key: MetricKey, *, log_y: bool) -> Chart:
    drawn = {run: lines[key] for run, lines in found.items() if key in lines}
    x_title, strokes = axis_title(key.axis), comparison.strokes
    figure = line_chart(
        [Line(run, points, strokes[run]) for run, points in drawn.items()],
        view=f"{key}{log_y}",
        x_title=x_title,
        y_title=metric(key).title,
        log_y=log_y,
    )
    figure.update_layout(showlegend=True)  # a single line, too, has to say whose it is
    frame = curves_frame(drawn, x_title)
    lengths = ", ".join(f"{run} {len(points):,}" for run, points in drawn.items())
    left_out = sum(int((points["value"] <= 0).sum()) for points in drawn.values()) if log_y else 0
    hidden = f" Not shown on a log axis: {left_out:,} values of 0 or less." if left_out else ""
    reduced = next(filter(None, map(reduced_note, drawn.values())), "")
    note = f"n = {lengths} {points_label(key)}.{hidden}{reduced}"
    shown = metric(key)
    told = rivals_headline(frame, shown.label, shown.better, shown.shown_unit, key.axis == BLOCK)
    headline = told or curve_label(key, comparison)
    return Chart(figure, frame.head(2000), note, headline=headline)


def curve_label(key: MetricKey, comparison: RunComparison) -> str:
    """What a curve is called: "Relative output error · Second pruning (SDS)"."""
    stages = {
        s: row.figures.label(s)
        for row in comparison.rows
        for s in stages_of(row.job) or row.figures.stages
    }
    parts = (metric(replace(key, series="")).title, stages.get(key.stage, key.stage), key.series)
    return " · ".join(filter(None, parts))


def weights_by_run(comparison: RunComparison) -> dict[str, RunWeights]:
    by_run = {run: weights_of(run) for run in comparison.runs}
    return {run: weights for run, weights in by_run.items() if weights}


def tensors_of(by_run: Mapping[str, RunWeights]) -> dict[str, str]:
    return {name: label for w in reversed([*by_run.values()]) for name, label in w.tensors.items()}


def tensor_chart(comparison: RunComparison, by_run: Mapping[str, RunWeights], tensor: str) -> Chart:
    series: dict[str, Series] = {}
    for row in sorted(comparison.rows, key=lambda row: row is not comparison.base):
        run = row.job.run
        if run not in by_run or tensor not in by_run[run].tensors:
            continue
        by_stage = {s.stage: s for s in tensors.tensor_snapshots(row.job.id, tensor)}
        if not series and DENSE in by_stage:
            series[DENSE] = Series(by_stage[DENSE], "Dense", stage_style(DENSE))
        stage = kept_stage(by_run[run], by_stage)
        label = f"{run} · {by_run[run].labels.get(stage, stage)}"
        series[run] = Series(by_stage[stage], label, comparison.strokes[run])
    missing = ", ".join(run for run in comparison.runs if run not in series)
    lacking = f"Not stored by {missing}." if missing else ""
    chart, last = overlay_chart([*series.values()], lacking), [*series][-1:]
    jobs = (row.job for row in comparison.rows if [row.job.run] == last)
    grid = next((words for job in jobs if (words := grid_description(job, tensor))), "")
    return replace(chart, headline=f"{series[last[0]].label}: {grid}") if grid else chart
