"""One sweep: which setting does best, and is the difference larger than that between seeds?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter

import gradio as gr
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.queue import permissions
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE, RESUMABLE
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric, metric, ordered
from jobs.sweep import SweepRow
from jobs.wording import extent
from ui.charts.chart import Chart
from ui.format import NONE, number, runs
from ui.frame import Page, current_user, live, query, url_sync
from ui.pages.sweep.charts import HEIGHT, SPREAD, sweep_means
from ui.pages.sweep.settings import headline, importance_chart, last_stage, ties
from ui.runs.actions.single import act
from ui.runs.html import model_name, progress, run_link, took, unknown
from ui.runs.results import RUN, format_value, kind_title, setting_title, stages_of
from ui.templates import fragments
from ui.widgets.dropdown import dropdown
from ui.widgets.html import WIDGETS, badge
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

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
NO_METRIC = MetricKey("")
WAITING = "Results appear here as the runs measure them."
HTML = fragments("pages/sweep/page.html")


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
        hidden = {"head": unknown("Sweep", what), "metric": gr.update(visible=False)}
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
    key = key if key in keys else next(iter(keys), NO_METRIC)
    return keys, [row for row in rows if row.metric == key], metric(key)


def _charts(jobs: Sequence[Job], rows: Sequence[SweepRow], shown: Metric) -> dict[Panel, Chart]:
    """Charts of one metric, empty where there are too few runs."""
    labels = stages_of(jobs[0])
    last = last_stage(rows, labels)
    titles = {field: setting_title(jobs[0].kind, field) for field in sweep.varied(jobs)}
    told = headline(last, shown, ties(jobs, last, shown)) if len(last) > 1 else ""
    return {
        MEANS: sweep_means(rows, shown, labels, told) if rows else Chart(WAITING),
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
    means = [_means(by_stage, stages, shown) for by_stage in by_combination.values()]
    return WIDGETS.table(heads, means, range(len(settings), len(heads)))


def _means(by_stage: Mapping[str, SweepRow], stages: Sequence[str], shown: Metric) -> list[object]:
    values = next(iter(by_stage.values())).values.values()
    means = (_mean(by_stage.get(stage), shown) for stage in stages)
    return [*values, *means, extent([row.n for row in by_stage.values()], str, "–")]


def _mean(row: SweepRow | None, shown: Metric) -> str | Markup:
    if row is None:
        return NONE
    scale = shown.scale
    spread = "" if row.spread is None else number(scale * row.spread, 2)
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
