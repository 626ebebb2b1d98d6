"""The page *New run*: compose a run, a sweep or a pipeline, see its plan, and add it to the queue.

composition   contents of the form; addresses
form          fields of a step
plan          the plan as a picture

The browser sends the composition whenever it changes, and gets the parts of the page that differ.
"""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backend.errors import ConfigError, RateLimitError, SlimscopeError
from backend.queue import gate, permissions, scheduling, service
from backend.queue.actor import Actor
from backend.store.tables import Job
from jobs import pipeline, sweep
from jobs.kind import kinds
from ui.api_errors import error_response
from ui.format import href, runs
from ui.frame import VERSION, Page
from ui.pages.new_run import plan
from ui.pages.new_run.composition import (
    MODEL,
    Composition,
    Unfilled,
    change,
    preset_of,
    read_address,
    recipe_of,
)
from ui.pages.new_run.form import field_view, key_fields, other_fields
from ui.security.auth import current_user
from ui.templates import fragments
from ui.widgets.config_form import HTML as FIELDS
from ui.widgets.html import problem

HTML = fragments("pages/new_run/page.html")
ADDRESS, PATH = "new-run", "/slimscope/new-run"
START = "slimscope.module('new_run/page').then((page) => page.start(element))"
QUEUE = "queue"  # the action that adds the runs
MAX_KEPT = 30_000  # characters of an address; the browser shows a longer one without its query
Parts = dict[str, Markup]  # element id -> its HTML


def build() -> None:
    gr.HTML(HTML.page(VERSION), js_on_load=START, apply_default_css=False, elem_id="new-run")


class FormMessage(BaseModel):
    """A message from the browser.

    Attributes:
        version: version of the page.
        address: query of the address, on arrival.
        composition: what the form holds.
        action: button that was pressed; empty if a field was changed.
        value: value of the button.
    """

    model_config = ConfigDict(extra="forbid")

    version: str = Field(max_length=40)
    address: str | None = None
    composition: Composition | None = None
    action: str = Field("", max_length=20)
    value: str = Field("", max_length=200)


async def endpoint(request: Request) -> Response:
    """Answer a message with the composition and the changed parts of the page."""
    body = await request.json()
    try:
        answer = await run_in_threadpool(reply, current_user(request), body)
    except SlimscopeError as error:
        return error_response(error)
    return JSONResponse(answer)


def reply(user: Actor, body: Any) -> dict[str, Any]:
    """The answer to a message. Raises `ConfigError` if it is malformed."""
    try:
        message = FormMessage.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError("The form was not accepted.", f"{where}: {first['msg']}.") from error
    if message.version != VERSION:  # an outdated page could queue other runs than it shows
        what = "The dashboard has changed since this page was opened."
        raise ConfigError(what, "", "Reload the page.")
    unfilled: list[Unfilled] = []
    composition, parts = message.composition, Parts()
    if composition is None:
        composition, unfilled = read_address(message.address or "")
        parts["new-said"] = HTML.unfilled(unfilled) if unfilled else Markup()
    elif message.action == QUEUE:
        parts["new-said"] = add(composition, user)
    elif message.action:
        composition = change(composition, message.action, message.value)
    if message.composition is None or message.action not in ("", QUEUE):
        parts["new-form"] = form_html(composition)
    parts |= preview(composition, user, with_options=message.action != QUEUE)
    query = composition.address()
    return {
        "composition": composition.model_dump(),
        "address": f"{ADDRESS}?{query}" if len(query) <= MAX_KEPT else ADDRESS,
        "parts": parts,
    }


def form_html(composition: Composition) -> Markup:
    """The form of the shown step."""
    first = composition.steps[0]
    model = field_view(first, MODEL) if composition.model else None
    above = key_fields(composition.shown)
    below = other_fields(composition.shown, above)
    return HTML.form(composition, model, kinds(), pipeline.PRESETS, above, below)


def preview(composition: Composition, user: Actor, with_options: bool = True) -> Parts:
    """Steps, recipes, messages and plan, within the limits of the user. Guests who may not add runs
    get the command only: no model is looked up."""
    off = permissions.may_not_add(user) or (
        permissions.may_not_change(user) if len(composition.steps) > 1 else ""
    )
    limit: SlimscopeError | None = None
    steps: list[plan.PlannedStep] = []
    if not permissions.may_not_add(user):
        try:
            gate.previews.spend(user)
            service.expect_run(user)
            steps = plan.planned(composition)
        except RateLimitError as error:
            limit = error
    is_planned = bool(steps)
    steps = steps or [plan.PlannedStep(step) for step in composition.steps]
    return {
        "new-steps": HTML.steps(steps, composition.at, kinds(), pipeline.MAX_STEPS),
        "new-add": HTML.add(sum(step.runs for step in steps), off),
        **(options_html(composition, is_planned) if with_options else {}),
        **messages(composition, steps[composition.at]),
        "new-plan": plan_html(composition, steps, is_planned, limit),
    }


def options_html(composition: Composition, with_prices: bool) -> Parts:
    """Recipes and presets of the shown step with their time and size."""
    step, parts = composition.shown, Parts()
    offered = {"recipe": step.spec.recipes, "preset": step.spec.presets}
    chosen = {"recipe": recipe_of(step), "preset": preset_of(step)}
    for group, options in offered.items():
        prices = {x: plan.price(composition, options, x) if with_prices else "" for x in options}
        parts[f"new-{group}s"] = HTML.options(group, prices, chosen[group], step.spec.notes)
    return parts


def messages(composition: Composition, step: plan.PlannedStep) -> Parts:
    """The error or warning of each field of the shown step, and of the model."""
    error = step.error
    errors = {item.field: item for item in (error, *error.others)} if error else {}
    warnings = step.plan.estimate.field_warnings if step.plan else {}
    parts = Parts()
    for name in {MODEL, *composition.shown.spec.config.model_fields}:
        html = FIELDS.field_error(errors[name]) if name in errors else Markup()
        if not html and name in warnings:
            html = FIELDS.field_warning(warnings[name])
        parts[f"message-{name}"] = html
    return parts


def plan_html(
    composition: Composition,
    steps: list[plan.PlannedStep],
    is_planned: bool,
    limit: SlimscopeError | None,
) -> Markup:
    """The picture of the plan, or the reason why there is none, and the shell command."""
    command, refused = plan.command(composition), plan.first_error(steps)
    if not is_planned:
        return HTML.plan(command, error=limit)
    if refused:
        return HTML.refused(command, *refused, len(steps))
    maps = [plan.layer_map(step.plan.estimate.plan) if step.plan else None for step in steps]
    title, note = plan.source_of(composition)
    picture = HTML.picture(title, [*zip(steps, maps, strict=True)])
    return HTML.plan(
        command,
        picture,
        plan.bars(steps),
        plan.ticks(),
        same=plan.same_runs(steps[0]) if len(steps) == 1 else {},
        warnings=plan.texts_of(steps, "warnings"),
        notes=[*filter(None, [note]), *plan.texts_of(steps, "notes")],
        basis=[*dict.fromkeys(x.plan.estimate.basis for x in steps if x.plan)],
        runs=runs(sum(step.runs for step in steps)),
    )


def add(composition: Composition, user: Actor) -> Markup:
    """Add the runs of a composition to the queue; return a message of success or failure."""
    try:
        jobs = enqueue(composition, user)
    except SlimscopeError as error:
        return problem(error)
    return HTML.added(jobs, scheduling.status().position(jobs[0].id), links(composition, jobs))


def enqueue(composition: Composition, user: Actor) -> list[Job]:
    """Queue the runs of a composition. Raises the errors of `sweep.queue` and `pipeline.queue`."""
    if len(composition.steps) > 1:
        return pipeline.queue(pipeline.of_document(composition.document()), user)
    (step,) = composition.steps
    several = sweep.read(step.kind, step.several.items())
    return sweep.queue(step.kind, step.values, several, user, name=composition.name)


def links(composition: Composition, jobs: list[Job]) -> Mapping[str, str]:
    """Links to the added runs."""
    first = jobs[0].run
    if len(jobs) > 1 and len(composition.steps) == 1:
        return {"Open the sweep": href("runs", q=f"sweep={first}", open=first)}
    return {f"Open {first}": href("run", id=first)}


PAGE = Page("New run", ADDRESS, build, order=10, heading=False)
