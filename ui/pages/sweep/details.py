"""What the page of a sweep shows as HTML: its head, its runs, and the means over seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from backend.queue import permissions
from backend.queue.actor import Actor
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE, RESUMABLE
from backend.store.tables import Job
from jobs import sweep
from jobs.metrics import Metric
from jobs.sweep import SweepRow
from jobs.wording import extent
from ui.format import NONE, number, runs
from ui.pages.sweep.charts import SPREAD
from ui.runs.html import model_name, progress, run_link, took
from ui.runs.results import RUN, format_value, kind_title, setting_title
from ui.templates import fragments
from ui.widgets.html import WIDGETS, badge

HTML = fragments("pages/sweep/page.html")


def stage_rows(rows: Sequence[SweepRow]) -> list[SweepRow]:
    return [row for row in rows if row.stage != RUN]


def head(jobs: Sequence[Job], actor: Actor) -> Markup:
    first = jobs[0]
    model = [model_name(first.config["model"])] if "model" in first.config else []
    going = sum(job.state in ACTIVE and job.desired == "run" for job in jobs)
    ended = sum(job.state in RESUMABLE for job in jobs)
    question = f"Cancel {runs(going)}? Running ones stop at the next safe point."
    actions = [("cancel-sweep", f"Cancel {runs(going)}", question)] if going else []
    actions += [("resume-sweep", f"Resume {runs(ended)}", "")] if ended else []
    return HTML.head(
        first, Counter(job.state for job in jobs), actions, permissions.may_not_change(actor),
        [kind_title(first), *model, f"{len(jobs)} runs"],
        [setting_title(first.kind, field) for field in sweep.varied(jobs)],
    )  # fmt: skip


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
        [run_link(job), *(job.config.get(field) for field in fields), badge(job.state),
         *([progress(job)] if live else []), took(job, now)]
        for job in jobs
    ]  # fmt: skip
    means = means_table(jobs, rows, shown, labels)
    return HTML.body(shown.title, means, SPREAD, heads, run_rows)
