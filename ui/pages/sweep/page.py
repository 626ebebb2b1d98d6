"""One sweep: which setting does best, and is the difference larger than that between seeds?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.queue import permissions
from backend.queue.actor import Actor
from backend.statistics.paired import paired_ratio
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE, RESUMABLE
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric, metric, ordered
from jobs.sweep import SweepRow, importance
from jobs.wording import extent
from ui.charts.chart import Chart, axis, category_axis, layout, legend_row, log_axis
from ui.charts.headlines import lower
from ui.charts.lines import dots, in_lines, log_span, rows_axis, rows_height, symbol
from ui.format import NONE, esc, number, runs, share
from ui.frame import Page, current_user, live, query, url_sync
from ui.runs.actions import act
from ui.runs.html import model_name, not_found_html, progress, run_link, took
from ui.runs.results import (
    RUN,
    WINDOW_METRICS,
    format_value,
    kind_title,
    setting_title,
    stages_of,
    window_losses,
)
from ui.templates import fragments
from ui.theme import BLUE, LIGHT, stage_style
from ui.widgets.dropdown import dropdown
from ui.widgets.html import LATEST, WIDGETS, HtmlPanel, badge, notice, plain
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

DENSE = "dense"
HEIGHT, AROUND = 420, 152  # pixels: reserved for the chart; what is not rows
MIN_HEIGHT = 320  # pixels, so that a phone shows the whole legend
LOG_FROM = 4.0  # largest over smallest from which a log axis is worth it
SPREAD = "±: sample standard deviation over seeds; none for a single run."
MEANS = Panel(
    "chart",
    "Mean and spread over seeds",
    "Which setting is best, by more than seeds differ?",
    HEIGHT,
)
IMPORTANCE = Panel(
    "importance",
    "What matters",
    "How much of the differences does each setting explain alone?",
    320,
)
HTML = fragments("pages/sweep/page.html")


def importance_chart(rows: Sequence[SweepRow], shown: Metric, titles: Mapping[str, str]) -> Chart:
    shares = importance(rows)
    if not shares:
        return Chart(None)
    names = [titles.get(field, field) for field in shares]
    percent = [100 * value for value in shares.values()]
    colors = [*[BLUE] * (len(names) - 1), LIGHT.muted]
    bars = go.Bar(
        x=percent,
        y=names,
        orientation="h",
        marker={"color": colors},
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
    tied = {key for key, ratio in ratios.items() if ratio and not ratio.is_significant}
    return [row for row in rows if repr(row.values) in tied]


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
        stroke.color,
        "line-ns" if is_dense else symbol(stroke),
        [_hover(*row) for row in said],
        size=22 if is_dense else 10,
        name=label,
        error_x={"array": spreads.fillna(0.0).tolist(), "color": stroke.color},
    )


def _hover(combination: str, label: str, mean: float, spread: float, n: int) -> str:
    more = "" if pd.isna(spread) else f" ± {number(spread, 2)}"
    return f"<b>{esc(combination)}</b><br>{label}: {number(mean)}{more}<br>n = {n} runs"


def build() -> None:
    head = HtmlPanel(elem_id="sweep-head", min_height=64)
    message = notice("sweep-said")
    shown = dropdown("Metric", "sweep-metric", visible=False)
    page = Outputs(head=head, metric=shown, **MEANS.build("sweep", [[shown]]))
    with gr.Column(visible=False) as page["settings"]:
        page |= IMPORTANCE.build("sweep")
    page["body"] = plain(elem_id="sweep-runs")

    show = page.named(draw), shown, page.components
    live(*show)
    url_sync(shown.input(*show, **LATEST), metric=shown)
    head.on_action(act, message, show)


def draw(chosen: str | None, request: gr.Request) -> Updates:
    run = query(request, "id")
    jobs = _jobs(run)
    if not jobs:
        what = f"{run} is not part of a sweep." if run else "No sweep is chosen."
        hidden = {"head": not_found_html("Sweep", what), "metric": gr.update(visible=False)}
        empty = [panel.show(Chart(None)) for panel in (MEANS, IMPORTANCE)]
        return updates(hidden, *empty, {"settings": gr.update(visible=False), "body": ""})
    keys, rows, shown = _measured(jobs, chosen or query(request, "metric"))
    drawn = _charts(jobs, rows, shown)
    html = {
        "head": head(jobs, current_user(request)),
        "metric": gr.update(
            choices=[(m.title, m.name) for m in map(metric, keys)],
            value=shown.name,
            visible=bool(keys),
        ),
        "body": body(jobs, rows, shown, stages_of(jobs[0])),
        "settings": gr.update(visible=drawn[IMPORTANCE].frame is not None),
    }
    means = MEANS.show(drawn[MEANS], f"{jobs[0].run}-{shown.name}")
    return updates(html, means, IMPORTANCE.show(drawn[IMPORTANCE]))


def _measured(jobs: Sequence[Job], wanted: str) -> tuple[list[MetricKey], list[SweepRow], Metric]:
    figures = sweep.table(jobs, queries.results([job.id for job in jobs]))
    rows = [row for row in figures if row.stage != RUN]
    keys, key = ordered(row.metric for row in rows), MetricKey.parse(wanted)
    key = key if key in keys else next(iter(keys), MetricKey(""))
    return keys, [row for row in rows if row.metric == key], metric(key)


def _charts(jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric) -> dict[Panel, Chart]:
    """Charts of one metric, empty where there are too few runs."""
    labels = stages_of(jobs[0])
    order, stages = [*labels], {row.stage for row in rows}
    final = max(stages, key=lambda s: order.index(s) if s in order else -1, default="")
    last = [row for row in rows if row.stage == final]
    titles = {field: setting_title(jobs[0].kind, field) for field in sweep.varied(jobs)}
    told = headline(last, shown, ties(jobs, last, shown)) if len(last) > 1 else ""
    return {
        MEANS: sweep_means(rows, shown, labels, told)
        if rows
        else Chart("Results appear here as the runs measure them."),
        IMPORTANCE: importance_chart(last, shown, titles),
    }


def reported(request: gr.Request) -> dict[Panel, Chart] | None:
    jobs = _jobs(query(request, "id"))
    return _charts(jobs, *_measured(jobs, query(request, "metric"))[1:]) if jobs else None


def _jobs(run: str) -> list[Job]:
    try:
        return queries.sweep(run)
    except SlimscopeError:
        return []


def head(jobs: Sequence[Job], actor: Actor) -> Markup:
    first = jobs[0]
    model = [model_name(first.config["model"])] if "model" in first.config else []
    going = sum(job.state in ACTIVE and job.desired == "run" for job in jobs)
    ended = sum(job.state in RESUMABLE for job in jobs)
    question = f"Cancel {runs(going)}? Running ones stop at the next safe point."
    actions = [("cancel-sweep", f"Cancel {runs(going)}", question)] if going else []
    actions += [("resume-sweep", f"Resume {runs(ended)}", "")] if ended else []
    return HTML.head(
        first,
        Counter(job.state for job in jobs),
        actions,
        permissions.may_not_change(actor),
        [kind_title(first), *model, f"{len(jobs)} runs"],
        [setting_title(first.kind, field) for field in sweep.varied(jobs)],
    )


def means_table(
    jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric, labels: Mapping[str, str]
) -> Markup:
    if not rows:
        return Markup()
    stages = [*dict.fromkeys(row.stage for row in rows)]
    by_combination: dict[str, dict[str, SweepRow]] = {}
    for row in rows:
        by_combination.setdefault(repr(row.values), {})[row.stage] = row
    settings = [setting_title(jobs[0].kind, field) for field in rows[0].values]
    heads = [*settings, *(labels.get(stage, stage) for stage in stages), "n"]
    lines = []
    for by_stage in by_combination.values():
        values = next(iter(by_stage.values())).values.values()
        means = (_mean(by_stage.get(stage), shown) for stage in stages)
        lines.append([*values, *means, extent([row.n for row in by_stage.values()], str, "–")])
    return WIDGETS.table(heads, lines, range(len(settings), len(heads)))


def _mean(row: SweepRow | None, shown: Metric) -> str | Markup:
    if row is None:
        return NONE
    spread = "" if row.spread is None else number(shown.scale * row.spread, 2)
    return HTML.mean(format_value(shown, row.mean), spread)


def body(
    jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric, labels: Mapping[str, str]
) -> Markup:
    fields, now = sweep.varied(jobs), now_ms()
    live = any(job.state in LIVE for job in jobs)
    heads = ["Run", *(setting_title(jobs[0].kind, field) for field in fields), "State"]
    heads += ["Progress", "Duration"] if live else ["Duration"]
    run_rows = [
        [
            run_link(job),
            *(job.config.get(field) for field in fields),
            badge(job.state),
            *([progress(job)] if live else []),
            took(job, now),
        ]
        for job in jobs
    ]
    means = means_table(jobs, rows, shown, labels)
    return HTML.body(shown.title, means, SPREAD, heads, run_rows)


PAGE = Page(
    "Sweep",
    "sweep",
    build,
    order=110,
    section="Runs",
    listed=False,
    heading=False,
    charts=page_charts(
        "sweep",
        reported,
        {p: itemgetter(p) for p in (MEANS, IMPORTANCE)},
        missing="There is no such sweep any more.",
    ),
)
