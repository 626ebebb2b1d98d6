"""Which settings matter in a sweep: the best combination, and the share of the differences each
setting explains."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from backend.statistics.paired import paired_ratio
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric
from jobs.sweep import SweepRow, importance
from ui.charts.chart import Chart
from ui.charts.headlines import lower
from ui.charts.template import axis, category_axis, layout
from ui.format import share
from ui.runs.results import WINDOW_METRICS, format_value, window_losses
from ui.theme import BLUE, LIGHT


def last_stage(rows: Sequence[SweepRow], labels: Mapping[str, str]) -> list[SweepRow]:
    order = [*labels]
    stages = {row.stage for row in rows}
    last = max(stages, key=lambda stage: order.index(stage) if stage in order else -1, default="")
    return [row for row in rows if row.stage == last]


def importance_chart(rows: Sequence[SweepRow], shown: Metric, titles: Mapping[str, str]) -> Chart:
    shares = importance(rows)
    if not shares:
        return Chart(None)
    names = [titles.get(field, field) for field in shares]
    percent = [100 * value for value in shares.values()]
    colours = [*[BLUE] * (len(names) - 1), LIGHT.muted]
    bars = go.Bar(
        x=percent,
        y=names,
        orientation="h",
        marker={"color": colours},
        text=[f"{value:.0f} %" for value in percent],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )
    looks = layout(
        view=f"importance/{shown.name}",
        xaxis=axis(f"Share of the differences in {shown.title}, %", range=[0, 108]),
        yaxis=category_axis(),
    )
    first = next(iter(shares))
    explained = f"{titles.get(first, first)} explains {share(shares[first], 0)}"
    frame = pd.DataFrame({"Setting": names, "Share, %": percent})
    note = f"n = {len(rows)} combinations. Each setting alone; linear, every value by itself."
    told = f"{explained} of the differences"
    return Chart(go.Figure(bars, looks), frame, note, headline=told)


def best_row(rows: Sequence[SweepRow], shown: Metric) -> SweepRow:
    return (max if shown.better == "higher" else min)(rows, key=lambda row: row.mean)


def headline(rows: Sequence[SweepRow], shown: Metric, tied: Sequence[SweepRow] = ()) -> str:
    best = best_row(rows, shown)
    labels = ", ".join(row.label for row in tied)
    others = f"; not significantly different: {labels}" if tied else ""
    return f"Best: {best.label}, {lower(shown.title)} {format_value(shown, best.mean)}{others}"


def ties(jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric) -> list[SweepRow]:
    """Combinations whose perplexity does not differ significantly from the best one's on the same
    windows, averaged over seeds; empty where unknown. `rows` are of one stage and metric."""
    if shown.key not in WINDOW_METRICS or len(rows) < 2:
        return []
    texts = ((job.environment or {}).get("text") or {} for job in jobs)
    if len({str(each.get("evaluation", {}).get("sha256")) for each in texts}) > 1:
        return []
    best, stage = best_row(rows, shown), rows[0].stage
    stored = {job.id: {n: x.tolist() for n, x in window_losses(job).items()} for job in jobs}
    losses = sweep.mean_losses(jobs, stored, stage)
    reference = losses.get(repr(best.values))
    if reference is None:
        return []
    ratios = {
        repr(row.values): paired_ratio(losses[repr(row.values)], reference)
        for row in rows
        if row is not best and repr(row.values) in losses
    }
    tied = {key for key, ratio in ratios.items() if ratio and not ratio.told_apart}
    return [row for row in rows if repr(row.values) in tied]
