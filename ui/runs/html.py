"""HTML about runs: links, models, settings, progress and errors."""

from collections.abc import Callable, Sequence
from pathlib import PurePath

from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.live.address import queued_state
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import LIVE
from backend.store.tables import Job
from ui.format import duration, eta_range, share
from ui.runs.results import kind_title, setting_summary
from ui.templates import fragments
from ui.widgets.html import WIDGETS, problem

RUNS = fragments("runs/runs.html")
run_link, named_link, tags_html = WIDGETS.run_link, WIDGETS.named_link, WIDGETS.tags_html
waiting_html: Callable[[Sequence[Job]], Markup] = RUNS.waits  # the runs that a run waits for


def model_name(spec: object) -> Markup:
    """The name of a model; of a path its last part, with the whole path as a tooltip."""
    text = str(spec)
    is_path = text.startswith(("/", "~", "."))
    return WIDGETS.shortened(text, PurePath(text).name if is_path else text)


def run_description(job: Job) -> Markup:
    """Kind, model and settings: "SDS pruning · smollm2-135m · 2:4 · wanda"."""
    model = [model_name(job.config["model"])] if "model" in job.config else []
    origin = ["formats of a Workbench state"] if queued_state(job.environment or {}) else []
    return Markup(" · ").join([kind_title(job), *model, *setting_summary(job), *origin])


def kind_and_settings(job: Job) -> Markup:
    """Kind and model of a run, and its settings in a second line."""
    model = [model_name(job.config["model"])] if "model" in job.config else []
    return Markup(" · ").join([kind_title(job), *model]) + WIDGETS.under(
        " · ".join(setting_summary(job))
    )


def progress(job: Job) -> Markup:
    """The progress bar of a live run; empty for others."""
    if job.state not in LIVE:
        return Markup()
    percent = "" if job.share is None else share(job.share, 0)
    label = " · ".join(filter(None, (percent, job.stage)))
    return WIDGETS.job_progress(job.run, job.share, label)


def time_left(job: Job) -> str:
    """The estimated remaining time of a live run; empty if unknown."""
    if job.state not in LIVE or job.eta_s is None:
        return ""
    return eta_range(job.eta_s, job.share, elapsed(job, now_ms()))


def elapsed(job: Job, now: int) -> float | None:
    """Run time in seconds, summed over all attempts; None before the start.

    Args:
        now: UTC milliseconds since 1970.
    """
    if (job.attempts_made or 0) > 1:
        spans = (
            (a.ended_at or now) - (a.started_at or a.launched_at) for a in queries.attempts(job.id)
        )
        return sum(max(0, span) for span in spans) / 1000
    if job.started_at is None:
        return None
    return ((job.finished_at or now) - job.started_at) / 1000


def took(job: Job, now: int) -> str:
    """The run time as text, such as "5 min"."""
    return duration(elapsed(job, now))


def error_of(job: Job) -> Markup:
    """The error of a run; empty without one."""
    if not job.error:
        return Markup()
    parts = (str(job.error.get(part) or "") for part in ("what", "why", "do"))
    return problem(SlimscopeError(*parts))


def not_found_html(title: str, what: str) -> Markup:
    """The content of a page whose address names no existing run; `what` says so."""
    return RUNS.unknown(title, NotFoundError(what, "", "Choose a run from the list."))
