"""Home: what compression does to a model, the result of each method, and what runs now."""

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
from ui.format import runs
from ui.frame import Page, current_user, live, on_change
from ui.gradio_patches import event_data
from ui.pages.home.showcase import changes, moving_histogram, race, showcase
from ui.runs.actions import act, buttons
from ui.runs.html import error_of, progress, run_description, time_left, took
from ui.runs.queue_eta import start_times, start_words
from ui.templates import fragments
from ui.widgets.explorer import page_state
from ui.widgets.html import HtmlPanel, notice, show_error, show_html, show_success, skeleton
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/home/page.html")
ROWS = 3  # of a card


def build() -> None:
    said = Outputs(said=notice("home-said"), toy=page_state())
    exhibits = Outputs(seen=page_state(), hero=HtmlPanel(skeleton(440), elem_id="home-hero"))
    now = Outputs(runs=HtmlPanel(elem_id="home-runs"))
    exhibits["methods"] = HtmlPanel(skeleton(280), elem_id="home-methods")
    show = now.named(draw), None, now.components
    live(*show)
    on_change(said.named(draw_toy), said["toy"], said.components)
    live(exhibits.named(draw_exhibits), exhibits["seen"], exhibits.components)
    for panel in (now["runs"], exhibits["hero"], exhibits["methods"]):
        panel.on_action(said.named(home_act), said.components, show)


def draw(request: gr.Request) -> Updates:
    """Cards of the runs that work, wait, or need a look."""
    status, actor, now = scheduling.status(), current_user(request), now_ms()
    live_runs = [
        (
            job,
            buttons(job, actor),
            run_description(job),
            progress(job),
            time_left(job),
            took(job, now),
        )
        for job in status.live
    ]
    queued = [(job, run_description(job)) for job in status.queued[:ROWS]]
    unseen = status.needs_attention
    failed = queries.jobs([State.FAILED, State.LOST], limit=ROWS) if unseen else []
    problems = [(job, buttons(job, actor), error_of(job)) for job in failed]
    if not (live_runs or queued or problems):
        return {"runs": ""}
    return {"runs": HTML.runs(live_runs, queued, len(status.queued), problems, unseen, now)}


def draw_exhibits(seen: Any, request: gr.Request) -> Updates:
    """Hero, moving histogram and methods; nothing if no figure was added since."""
    mark = list(queries.figures_mark())
    if seen == mark:
        return {}
    actor, shown = current_user(request), showcase()
    forbidden = permissions.may_not_change(actor)
    known = examples.bundled()
    there = {each.job.run for each in shown if each.job.id < 0}
    hero = HTML.hero(changes(), moving_histogram(), permissions.may_not_add(actor))
    methods = HTML.methods(shown, race(), bool(there), bool(known) and not there, forbidden)
    return {"seen": mark, "hero": hero, "methods": methods}


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


PAGE = Page("Home", "", build, order=0, section="Home", key="h", heading=False)
