"""Runs in HTML: links, models, settings, progress and errors."""

from collections.abc import Callable, Sequence
from pathlib import PurePath

from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.reporter import block_reached
from backend.store import queries
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.format import NONE, duration, eta_range, share
from ui.runs.results import kind_title, setting_summary
from ui.templates import fragments
from ui.widgets.html import WIDGETS, problem

RUNS = fragments("runs/runs.html")
run_link, named_link, tags_html = WIDGETS.run_link, WIDGETS.named_link, WIDGETS.tags_html
waits: Callable[[Sequence[Job]], Markup] = RUNS.waits  # the runs it waits for


def model_name(spec: object) -> Markup:
    text = str(spec)
    is_path = text.startswith(("/", "~", "."))
    return WIDGETS.shortened(text, PurePath(text).name if is_path else text)


def described(job: Job) -> Markup:
    """Kind, model and settings: "SDS pruning · smollm2-135m · 2:4 · wanda"."""
    model = [model_name(job.config["model"])] if "model" in job.config else []
    return Markup(" · ").join([kind_title(job), *model, *setting_summary(job)])


def model_and_settings(job: Job) -> Markup:
    return model_name(job.config.get("model", NONE)) + settings_line(job)


def kind_and_settings(job: Job) -> Markup:
    """Kind and model, over the settings."""
    model = [model_name(job.config["model"])] if "model" in job.config else []
    return Markup(" · ").join([kind_title(job), *model]) + settings_line(job)


def settings_line(job: Job) -> Markup:
    return WIDGETS.under(" · ".join(setting_summary(job)))


def progress(job: Job) -> Markup:
    if job.state not in LIVE:
        return Markup()
    percent = "" if job.share is None else share(job.share, 0)
    words = " · ".join(filter(None, (percent, job.stage)))
    return WIDGETS.job_progress(job.run, job.share, words, block_reached(job.stage or ""))


def time_left(job: Job) -> str:
    return eta_range(job.eta_s, job.share) if job.state in LIVE and job.eta_s is not None else ""


def elapsed(job: Job, now: int) -> float | None:
    """Seconds a run was worked on, over all attempts."""
    if (job.attempts_made or 0) > 1:
        spans = (
            (a.ended_at or now) - (a.started_at or a.launched_at) for a in queries.attempts(job.id)
        )
        return sum(max(0, span) for span in spans) / 1000
    if job.started_at is None:
        return None
    return ((job.finished_at or now) - job.started_at) / 1000


def took(job: Job, now: int) -> str:
    return duration(elapsed(job, now))


def error_of(job: Job) -> Markup:
    if not job.error:
        return Markup()
    parts = (str(job.error.get(part) or "") for part in ("what", "why", "do"))
    return problem(SlimscopeError(*parts))


def unknown(title: str, what: str) -> Markup:
    return RUNS.unknown(title, NotFoundError(what, "", "Choose a run from the list."))
