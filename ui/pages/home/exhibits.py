"""What a visitor sees first, as HTML, and its buttons: the toy and the examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.backup import examples
from backend.errors import SlimscopeError
from backend.models.sources.spec import TOY
from backend.queue import roles
from backend.queue.roles import Actor
from backend.store import queries
from backend.store.tables import Job
from jobs import operations
from jobs.imported import check_row
from jobs.kind import kinds
from ui.format import href, runs
from ui.frame import current_user
from ui.gradio_patches import event_data
from ui.pages.home.showcase import drafted_text, moving_histogram, showcase
from ui.runs.actions.single import act
from ui.runs.token_strip import BASE, tints, token_spans
from ui.templates import fragments
from ui.widgets.notice import show_error, show_success
from ui.widgets.panel import Updates

HTML = fragments("pages/home/exhibits.html")
DRAFTED_STEPS = 40  # of a text, shown


def draw_exhibits(seen: Any, request: gr.Request) -> Updates:
    """The figures, the moving histogram and the methods, unless no figure has been added since."""
    mark = list(queries.figures_mark())
    if seen == mark:
        return {}
    actor, shown = current_user(request), showcase()
    forbidden = roles.may_not_change(actor)
    known = examples.bundled()
    there = {each.job.run for each in shown if each.job.id < 0}
    hero = HTML.hero(shown, moving_histogram(shown), launch_address(), roles.may_not_add(actor))
    methods = HTML.methods(shown, _drafted(), bool(there), bool(known) and not there, forbidden)
    return {"seen": mark, "hero": hero, "methods": methods}


def _drafted() -> Markup:
    """A text in which drafted tokens are tinted; empty where there is none."""
    found = drafted_text()
    if found is None:
        return Markup()
    job, transcript = found
    beginning = replace(transcript, passes=transcript.passes[:DRAFTED_STEPS], rest="")
    heads = {head for _, head in beginning.tokens} - {BASE}
    return HTML.drafted(job, token_spans(beginning), tints(heads) if heads else [])


def launch_address() -> str:
    """Where the first step leads."""
    return href("new", kind=next(iter(kinds()), ""))


def home_act(event: gr.EventData, request: gr.Request) -> Any:
    """A button: the toy, the examples, or one of a run."""
    user = current_user(request)
    try:
        match event_data(event).get("do"):
            case "toy":
                return show_success(HTML.toy_queued(run_toy(user)))
            case "remove-examples":
                removed = examples.remove_examples(user)
                return show_success(f"{runs(len(removed))} removed.")
            case "restore-examples":
                return show_success(
                    f"{runs(len(examples.restore_examples(user, check_row)))} restored."
                )
    except SlimscopeError as error:
        return show_error(error)
    return act(event, request)


def run_toy(user: Actor) -> Job:
    """Queue the first method on the built-in toy model; it ends in seconds."""
    kind = next(iter(kinds().values()))
    preset = next(iter(kind.presets), "")
    record = operations.submit_run(kind.name, {"model": TOY}, user, preset, "The toy")
    return queries.job(record["id"])
