"""What a form would queue and what that costs, and queueing it; and the form of a sweep: fields of
a config with several values each."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup
from pydantic import BaseModel

from backend.errors import RateLimitError, SlimscopeError
from backend.queue import gate, permissions, scheduling, service
from backend.queue.actor import Actor
from backend.store import queries
from jobs import submit, sweep
from jobs.fields.models import resolve_model
from jobs.kind import Estimate, JobConfig, Kind
from jobs.sweep import MAX_FIELDS, MAX_RUNS
from ui.format import runs, short_count, size, time_range
from ui.frame import current_user
from ui.runs.results import size_before, size_saved
from ui.templates import fragments
from ui.widgets.config_form import field_error, title
from ui.widgets.html import notice, plain, show_error, show_success

HTML = fragments("pages/new_run/page.html")
TITLE = "Sweep"  # of the form of a sweep
MAX_LINKS = 3  # to runs of the same config
Pairs = Sequence[tuple[str, str]]  # swept field and its values, as they were typed
# HTML, number of runs, error for its field, field -> what to know of its value
Preview = tuple[Markup, int, SlimscopeError | None, Mapping[str, str]]


def preview_for(user: Actor, kind: Kind, values: Mapping[str, Any], pairs: Pairs = ()) -> Preview:
    """As `preview_of`, within the user's limit; for guests who may add nothing only the command:
    no model is looked up, here or on the hub."""
    command = submit.command_line(kind.name, values)
    if permissions.may_not_add(user):
        return HTML.preview(command), 0, None, {}
    try:
        gate.previews.spend(user)
    except RateLimitError as error:
        return HTML.preview(command, error), 0, error, {}
    service.expect_run(user)
    return preview_of(kind, values, pairs)


def preview_of(kind: Kind, values: Mapping[str, Any], pairs: Pairs = ()) -> Preview:
    swept: dict[str, list[str]] = {}
    try:
        swept = sweep.read(kind.name, pairs)
        plan = sweep.plan(kind.name, values, swept)
    except SlimscopeError as error:
        command = submit.command_line(kind.name, values, swept)
        return HTML.preview(command, error, refused=True), 0, error, {}
    command = submit.command_line(kind.name, values, swept)
    pairs_shown = models_of(plan.configs) | _costs(plan.estimate, len(plan.configs))
    # the same config gives the same result
    same = queries.existing_runs(
        kind.name, (config.model_dump(mode="json") for config in plan.configs)
    )
    if same:
        pairs_shown["Already run"] = HTML.same_runs(same[:MAX_LINKS], len(same) - MAX_LINKS)
    html = HTML.preview(
        command, pairs=pairs_shown, warnings=plan.estimate.warnings, notes=plan.estimate.notes
    )
    return html, len(plan.configs), None, plan.estimate.field_warnings


def models_of(configs: Sequence[JobConfig]) -> dict[str, Markup]:
    """The models of the configs, with their size."""
    specs = dict.fromkeys(config.model for config in configs if hasattr(config, "model"))
    return {"Model": HTML.models([_described(spec) for spec in specs])} if specs else {}


def _described(spec: str) -> tuple[str, str]:
    """A model's title and size, and the note of the catalog."""
    try:
        facts = resolve_model(spec, reads=False).facts
    except SlimscopeError:  # the kind says why
        return spec, ""
    shape = f"{short_count(facts.parameters)} parameters, {facts.blocks} blocks"
    return f"{facts.title}: {shape}", facts.note


def _costs(cost: Estimate, number: int) -> dict[str, str]:
    time = time_range(cost.low, cost.high)
    return {
        **({"Adds": runs(number)} if number > 1 else {}),
        "Time": f"{time} for all {number}" if number > 1 else time,
        "Memory": f"about {size(cost.bytes)}",
        **(
            {"Size": f"{size_before(*cost.sizes[::2])} → about {size_saved(*cost.sizes[1:])}"}
            if cost.sizes
            else {}
        ),
        "Estimated from": cost.basis,
    }


def price(kind: Kind, values: Mapping[str, Any]) -> str:
    """Time and memory of a preset in short; "" where it cannot run as it is."""
    try:
        cost = sweep.plan(kind.name, values, {}).estimate
    except SlimscopeError:
        return ""
    return f"{time_range(cost.low, cost.high)}, {size(cost.bytes)}"


def enqueue(
    kind: Kind, name: str, values: Mapping[str, Any], pairs: Pairs, request: gr.Request
) -> tuple[Any, SlimscopeError | None]:
    """Adds the runs to the queue; an update that says so, or what is wrong."""
    try:
        swept = sweep.read(kind.name, pairs)
        jobs = sweep.queue(kind.name, values, swept, current_user(request), name=name or "")
    except SlimscopeError as error:
        return show_error(error), error
    # in words that stay true when it runs
    place = scheduling.status().position(jobs[0].id)
    return show_success(HTML.added(jobs[0], len(jobs), place)), None


class SweepForm:
    """Rows of a field and its values; draw it inside a Blocks context.

    Args:
        config: the pydantic class whose fields can be chosen.
        prefix: starts the ids of its elements.
    """

    def __init__(self, config: type[BaseModel], prefix: str = "") -> None:
        example = "2:4, 70%" if "pattern" in config.model_fields else "0..2"
        choices = [(title(n, info), n) for n, info in config.model_fields.items()]
        self.inputs: list[gr.Dropdown | gr.Textbox] = []
        self.messages: list[gr.HTML] = []
        self.accordion = gr.Accordion(TITLE, open=False, elem_classes="form-advanced sweep")
        with self.accordion:
            hint = (
                f"Up to {MAX_FIELDS} fields can have several values each; every combination "
                f"becomes a run, at most {MAX_RUNS}. Separate values with commas; 0..2 is a "
                "range. Several seeds give mean and standard deviation."
            )
            plain(HTML.hint(hint))
            for number in range(1, MAX_FIELDS + 1):
                with gr.Row(elem_classes="form-grid"):
                    with gr.Column(min_width=200, elem_classes="form-field"):
                        field = gr.Dropdown(
                            [("–", ""), *choices],
                            value="",
                            label=f"Field {number}",
                            elem_id=f"{prefix}sweep-field-{number}",
                        )
                    with gr.Column(min_width=200, elem_classes="form-field"):
                        values = gr.Textbox(
                            label="Values",
                            max_lines=1,
                            max_length=600,
                            placeholder=example,
                            elem_id=f"{prefix}sweep-values-{number}",
                        )
                        self.messages.append(notice(f"{prefix}sweep-message-{number}"))
                self.inputs += [field, values]

    def pairs(self, given: Sequence[Any]) -> list[tuple[str, str]]:
        """The rows that were filled in, as (field, values); no field where none was chosen."""
        rows = zip(given[::2], (str(text or "") for text in given[1::2]), strict=True)
        return [(field or "", text) for field, text in rows if field or text.strip()]

    def rows_of(self, error: SlimscopeError | None, given: Sequence[Any]) -> list[int]:
        """The row the error is about, if any: of a field that was named twice, the second."""
        if error is None:
            return []
        rows = enumerate(zip(given[::2], given[1::2], strict=True))
        return [i for i, (field, text) in rows if (field or text) and field == error.field][-1:]

    def show_errors(self, error: SlimscopeError | None, given: Sequence[Any]) -> dict[Any, Any]:
        """Updates that show the error under its row and clear the other messages."""
        wrong = self.rows_of(error, given)
        html = field_error(error) if error else ""
        return {
            message: gr.update(value=html if i in wrong else "", visible=i in wrong)
            for i, message in enumerate(self.messages)
        }

    def count(self, runs: int) -> dict[Any, Any]:
        """Update of the accordion's label: how many runs there will be."""
        return {self.accordion: gr.update(label=f"{TITLE} · {runs} runs" if runs > 1 else TITLE)}
