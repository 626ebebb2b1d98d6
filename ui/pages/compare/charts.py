"""Charts of several runs in the colors of the comparison: metrics of stages or decoders, overlaid
curves, and the weights of one tensor."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from backend.metric_key import MetricKey
from backend.statistics.tensors import RELATIVE_ERROR
from backend.store import frames, tensors
from jobs.metrics import (
    BLOCK,
    ERROR,
    LOSS,
    MEMORY,
    PERPLEXITY,
    PROCESSOR,
    SPEED_UP,
    axis_title,
    metric,
)
from ui.charts.chart import Chart, axis, layout, legend_row, log_axis
from ui.charts.headlines import MAX_NAMED, lead_headline, rivals_headline
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
    rows_height,
    symbol,
)
from ui.charts.series import Series, overlay_chart
from ui.format import esc, number, share
from ui.pages.compare.comparison import RunComparison, ratio_of
from ui.runs.results import DENSE, display_units, stages_of
from ui.runs.rows import RunRow
from ui.runs.weights import RunWeights, kept_stage, weights_of
from ui.theme import stage_style

TAKEN = (MEMORY, PROCESSOR)
KEPT_ERROR = replace(ERROR, stage="kept stages")
AROUND_ROWS, USUAL_HEIGHT = 104, 360  # pixels of legend and axis; of a chart with few rows
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x")

Points = dict[str, dict[MetricKey, pd.DataFrame]]  # run -> curve -> its points


def stage_dots(
    comparison: RunComparison, rows: Sequence[RunRow], key: MetricKey, note: str = ""
) -> Chart:
    """A metric by stage or decoder (rows) and run (color and shape).

    Args:
        rows: the runs that were measured under the same conditions.
    """
    shown = metric(key)
    by_run = {row.job.run: row for row in rows}
    runs = {run: comparison.labels[run] for run in by_run}
    stages = {s: row.figures.label(s) for row in rows for s in row.figures.stages}
    frame = pd.DataFrame(
        {
            "Stage": label,
            **{runs[run]: row.figures.value(stage, key) for run, row in by_run.items()},
        }
        for stage, label in stages.items()
    ).dropna(how="all", subset=[*runs.values()])
    values = [value for label in runs.values() for value in frame[label].dropna()]
    traces = [
        _run_dots(comparison, row, key, SHAPES[place % len(SHAPES)])
        for place, row in enumerate(rows)
    ]
    x = axis(shown.title)
    if key == PERPLEXITY:
        x = log_axis(shown.title, log_span(values), showgrid=False, tickangle=0)
    names = [*map(in_lines, frame["Stage"])]
    more = rows_height(len(names), AROUND_ROWS, USUAL_HEIGHT) - USUAL_HEIGHT
    looks = layout(view=str(key), more=more, xaxis=x, yaxis=rows_axis(names), **legend_row())
    ends = {run: end for run, r in by_run.items() if (end := r.figures.final(key) or _best(r, key))}
    ranked = sorted(ends, key=lambda run: ends[run], reverse=shown.better == "higher")
    ratio = ratio_of(*(by_run[run] for run in ranked[:2])) if ranked[1:] else None
    headline = lead_headline(
        shown.label,
        [(runs[run], ends[run]) for run in ranked],
        "\u00a0×" if key == SPEED_UP else "",
        is_decided=key != PERPLEXITY or ratio is None or ratio.is_significant,
    )
    return Chart(go.Figure(traces, looks), frame, note, headline=headline)


def _run_dots(comparison: RunComparison, row: RunRow, key: MetricKey, shape: str) -> go.Scatter:
    """The dots of a run, with their standard errors."""
    figures, run = row.figures, row.job.run
    stroke, name = comparison.strokes[run], esc(comparison.labels[run])
    points = [point for stage in figures.stages if (point := figures.get(stage, key))]
    at = [in_lines(figures.label(point.stage)) for point in points]
    hover = [
        f"<b>{name}</b><br>{stage}<br>{metric(key).title} {number(point.value)}"
        for stage, point in zip(at, points, strict=True)
    ]
    errors = {
        "array": [point.stderr or 0.0 for point in points],
        "color": stroke.color,
        "thickness": 1,
        "width": 0,
    }
    return dots(
        [point.value for point in points],
        at,
        stroke.color,
        symbol(stroke, shape),
        hover,
        name=name,
        error_x=errors,
    )


def _best(row: RunRow, key: MetricKey) -> float | None:
    """The highest value of a metric at any stage; None without one."""
    values = [r.value for (_, measured), r in row.figures.rows.items() if measured == key]
    return max(values, default=None)


def curves_of(comparison: RunComparison) -> tuple[Points, dict[str, MetricKey]]:
    """The points of every run; the curves of more than a single point that two or more of them have
    recorded, by name: what the processes took last, else those of most runs first, of these the
    errors of the stage the baseline kept, and losses. Runs that kept different stages are compared
    by the errors of what each kept first; errors of stages that no run kept are left out."""
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
    several = _shared(found)
    offered = [
        k
        for k in several
        if k.family != ERROR.family or k == KEPT_ERROR or kept_stages & {k.stage, None}
    ]
    keys = sorted(
        offered,
        key=lambda k: (
            k in TAKEN,
            k != KEPT_ERROR,
            -several[k],
            k.family not in (ERROR.family, LOSS.family),
            k.family != ERROR.family,
        ),
    )
    return found, {str(key): key for key in keys}


def _shared(found: Points) -> dict[MetricKey, int]:
    """Curves with more than one point that several runs have: key -> number of runs."""
    drawn = Counter(k for lines in found.values() for k, rows in lines.items() if len(rows) > 1)
    every = Counter(key for lines in found.values() for key in lines)
    return {key: many for key, many in drawn.items() if every[key] > 1}


def chosen_curve(offered: Mapping[str, MetricKey], wanted: str | None) -> MetricKey:
    """The selected curve if it is available, otherwise the first."""
    return offered.get(wanted or "") or next(iter(offered.values()))


def curve_chart(comparison: RunComparison, found: Points, key: MetricKey) -> Chart:
    drawn = {run: lines[key] for run, lines in found.items() if key in lines}
    x_title, strokes, labels = axis_title(key.axis), comparison.strokes, comparison.labels
    figure = line_chart(
        [Line(esc(labels[run]), points, strokes[run]) for run, points in drawn.items()],
        view=str(key),
        x_title=x_title,
        y_title=metric(key).title,
    )
    figure.update_layout(showlegend=True)  # a single line needs the name of its run, too
    frame = curves_frame({labels[run]: points for run, points in drawn.items()}, x_title)
    lengths = ", ".join(f"{labels[run]} {len(points):,}" for run, points in drawn.items())
    reduced = next(filter(None, map(reduced_note, drawn.values())), "")
    note = f"n = {lengths} {points_label(key)}.{reduced}"
    label = curve_label(key, comparison)
    sources = {row.job.config.get("model") for row in comparison.rows if row.job.run in drawn}
    if key.family == ERROR.family and len(sources) > 1:
        note += " Errors are relative to different source models: not comparable."
        return Chart(figure, frame.head(2000), note, headline=label)
    shown = metric(replace(key, series=""))
    quantity = label.replace(shown.title, shown.label, 1)  # the unit follows each figure
    told = rivals_headline(frame, quantity, shown.shown_unit, key.axis == BLOCK)
    return Chart(figure, frame.head(2000), note, headline=told or label)


def curve_label(key: MetricKey, comparison: RunComparison) -> str:
    """Return the label of a curve: "Relative output error · Second pruning (SDS)"."""
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


def most_different(comparison: RunComparison, by_run: Mapping[str, RunWeights]) -> str:
    """The tensor that differs most between the kept stages, in the first statistic that is known of
    all runs; else the first."""
    kept = [
        by_run[row.job.run].of_stage(row.figures.kept).set_index("tensor")
        for row in comparison.rows
        if row.job.run in by_run and row.figures.kept in by_run[row.job.run].stages
    ]
    for name in (RELATIVE_ERROR, "moved", "std") if len(kept) > 1 else ():
        known = pd.concat([rows.reindex(columns=[name]) for rows in kept], axis=1).dropna()
        if len(known):
            return str((known.max(axis=1) - known.min(axis=1)).idxmax())
    return next(iter(tensors_of(by_run)))


def tensor_chart(comparison: RunComparison, by_run: Mapping[str, RunWeights], tensor: str) -> Chart:
    series: dict[str, Series] = {}
    for row in sorted(comparison.rows, key=lambda row: row is not comparison.base):
        run = row.job.run
        if run not in by_run or tensor not in by_run[run].tensors:
            continue
        by_stage = {s.stage: s for s in tensors.tensor_snapshots(row.job.id, tensor)}
        if not series and DENSE in by_stage:
            series[DENSE] = Series(by_stage[DENSE], "Dense", stage_style(DENSE))
        stage = row.figures.kept or kept_stage(by_run[run], by_stage)
        if stage not in by_stage:
            continue
        label = f"{esc(comparison.labels[run])} · {by_run[run].labels.get(stage, stage)}"
        series[run] = Series(by_stage[stage], label, comparison.strokes[run])
    missing = comparison.names(run for run in comparison.runs if run not in series)
    lacking = f"Not stored by {missing}." if missing else ""
    zeros = [
        f"{comparison.labels[run]} {share(each.zero_share)}"
        for run, each in series.items()
        if run != DENSE
    ]
    label = tensors_of(by_run)[tensor]
    headline = f"{label}, exact zeros: {'; '.join(zeros[:MAX_NAMED])}" if zeros else ""
    return replace(overlay_chart([*series.values()], lacking), headline=headline)
