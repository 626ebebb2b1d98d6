"""The queue at the top of the page *Runs*: live runs, queued runs, and the reasons why they
wait."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from backend.queue import permissions, scheduling
from backend.queue.actor import Actor
from backend.queue.scheduling import awaited
from backend.store.session import now_ms
from backend.store.tables import Job
from ui.pages.runs.thumbnails import LIVE_HEIGHT, LIVE_WIDTH, live_curves
from ui.runs.actions import buttons
from ui.runs.html import progress, run_description, time_left, took, waiting_html
from ui.runs.queue_eta import start_times, start_words
from ui.templates import fragments

HTML = fragments("pages/runs/queue.html")
MAX_WAITING = 6  # queued runs shown at once


def queue_html(user: Actor) -> Markup:
    """The live and the queued runs; empty if there are none."""
    status = scheduling.status()
    if not status.live and not status.queued:
        return Markup()
    now, waiting = now_ms(), awaited(job.id for job in status.queued)
    starts = start_times(status, waiting)
    live = [
        (
            job,
            run_description(job),
            progress(job),
            time_left(job),
            took(job, now),
            buttons(job, user),
        )
        for job in status.live
    ]
    queued = [
        (job, run_description(job), *_wait(job, waiting, starts, status.position(job.id), user))
        for job in status.queued
    ]
    curves = HTML.curves(live_curves(status.live), LIVE_WIDTH, LIVE_HEIGHT)
    can_move = not permissions.may_not_change(user)
    return HTML.queue(live, queued, MAX_WAITING, status.stalled, can_move, curves)


def _wait(
    job: Job,
    waiting: Mapping[int, Sequence[Job]],
    starts: Mapping[int, float],
    place: int | None,
    user: Actor,
) -> tuple[Markup | str, Markup]:
    """The reason why a queued run waits, or the time of its start; its buttons."""
    if job.id in waiting:
        return waiting_html(waiting[job.id]), buttons(job, user)
    return start_words(starts.get(job.id)), buttons(job, user, place)
