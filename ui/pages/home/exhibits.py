"""What a visitor sees first, as HTML, and its buttons: the toy and the examples."""

from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.backup import examples
from backend.errors import SlimscopeError
from backend.models.sources.spec import TOY
from backend.queue import permissions, scheduling
from backend.queue.scheduling import QueueStatus
from backend.settings import settings
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import State
from backend.store.tables import Job
from jobs.imported import check_row
from jobs.kind import kinds
from jobs.operations.submission import submit_run
from ui.format import href, runs
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.pages.home.showcase import changes, moving_histogram, race, showcase
from ui.runs.actions import act
from ui.runs.html import took
from ui.runs.queue_eta import start_times, start_words
from ui.templates import fragments
from ui.widgets.html import show_error, show_html, show_success
from ui.widgets.panel import Updates

HTML = fragments("pages/home/exhibits.html")


def draw_exhibits(seen: Any, request: gr.Request) -> Updates:
    """Hero, moving histogram and methods; nothing if no figure was added since."""
    mark = list(queries.figures_mark())
    if seen == mark:
        return {}
    actor, shown = current_user(request), showcase()
    forbidden = permissions.may_not_change(actor)
    known = examples.bundled()
    there = {each.job.run for each in shown if each.job.id < 0}
    hero = HTML.hero(
        changes(), moving_histogram(), launch_address(), permissions.may_not_add(actor)
    )
    methods = HTML.methods(shown, race(), bool(there), bool(known) and not there, forbidden)
    return {"seen": mark, "hero": hero, "methods": methods}


def launch_address() -> str:
    return href("new", kind=next(iter(kinds()), ""))


def home_act(event: gr.EventData, request: gr.Request) -> Updates:
    user = current_user(request)
    try:
        match event_data(event).get("do"):
            case "toy":
                kind = next(iter(kinds().values()))
                preset = next(iter(kind.presets), "")
                record = submit_run(kind.name, {"model": TOY}, user, preset, "The toy")
                return draw_toy([record["id"]]) | {"toy": [record["id"]]}
            case "remove-examples":
                said = show_success(f"{runs(len(examples.remove_examples(user)))} removed.")
            case "restore-examples":
                restored = examples.restore_examples(user, check_row)
                said = show_success(f"{runs(len(restored))} restored.")
            case _:
                said = act(event, request)
    except SlimscopeError as error:
        said = show_error(error)
    return {"said": said, "toy": None}


def draw_toy(toy: Any) -> Updates:
    if not isinstance(toy, list) or not toy:
        return {}
    try:
        job = queries.job(str(toy[0]))
        told = job.state not in (State.STARTING, State.RUNNING)  # "Running now" shows those
        return {"said": show_success(toy_words(job, scheduling.status())) if told else show_html()}
    except SlimscopeError as error:
        return {"said": show_error(error)}


def toy_words(job: Job, status: QueueStatus) -> Markup:
    """State of the toy's run: place in the queue, or outcome."""
    live = [other for other in status.live if other.lane == job.lane]
    waiting = [other.id for other in status.queued if other.lane == job.lane]
    start = start_times(status).get(job.id)
    ahead = waiting.index(job.id) if job.id in waiting else 0
    ahead = ahead + len(live) if len(live) >= settings().slots else ahead
    return HTML.toy(job, ahead if start != 0 else 0, start_words(start), took(job, now_ms()))
