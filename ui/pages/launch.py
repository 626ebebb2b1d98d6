"""Launch: build a config, see what it will cost, put it into the queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from backend.models import catalogue
from backend.queue import supervisor
from backend.store import queries
from backend.store.tables import Job
from backend.text import corpora
from jobs import submit
from jobs.kinds import Kind, kinds
from ui.components.actions import GUEST
from ui.components.board import LATEST, Board
from ui.components.cards import empty, facts, shell, stack
from ui.components.config_form import Choice, ConfigForm
from ui.components.plain import done, failed, notice, plain, said
from ui.format import duration, esc, href, problem, short_count, size
from ui.frame import READER, Page, actor, on_load, query, url_sync

NO_PRESET = "default"


@dataclass(frozen=True)
class KindForm:
    """The form of one kind, and the column it stands in."""

    kind: Kind
    column: gr.Column
    preset: gr.Radio
    form: ConfigForm


def build() -> None:
    found = kinds()
    if not found:
        plain(empty("No kind of run is installed."))
        return
    with gr.Row(elem_classes="launch"):
        with gr.Column(scale=2, min_width=320):
            first = next(iter(found))
            method = gr.Radio(
                [(kind.title, name) for name, kind in found.items()],
                value=first,
                label="Method",
                elem_id="launch-kind",
            )
            forms = {name: _form(kind, visible=name == first) for name, kind in found.items()}
        with gr.Column(scale=1, min_width=320, elem_classes="launch-side"):
            name = gr.Textbox(
                label="Name of the run",
                info="Optional; yours to find it again.",
                max_length=120,
                max_lines=1,
                elem_id="launch-name",
            )
            add = gr.Button("Add to queue", variant="primary", elem_id="launch-add")
            told = notice("launch-said")
            preview = Board(elem_id="launch-preview", min_height=240)
    for form in forms.values():
        _wire(form, method, name, add, told, preview)
    columns = [form.column for form in forms.values()]
    chosen = method.input(_show_kind(list(forms)), method, columns, **READER)
    url_sync(chosen, kind=method)
    _wire_arrival(forms, method, name, add, told)


def _form(kind: Kind, *, visible: bool) -> KindForm:
    with gr.Column(visible=visible, elem_id=f"form-{kind.name}") as column:
        plain(f'<p class="quiet">{esc(kind.summary)}</p>')
        preset = gr.Radio(
            [NO_PRESET, *(p for p in kind.presets if p != NO_PRESET)],
            value=NO_PRESET,
            label="Preset",
            elem_id=f"preset-{kind.name}",
        )
        form = ConfigForm(kind.config, CHOICES)
    return KindForm(kind, column, preset, form)


# what can be chosen -------------------------------------------------------------------------------


def models() -> list[Choice]:
    """The models that are there, by their titles."""
    return [(_titled(e.title, e.ready), e.name) for e in catalogue.entries()]


def texts(role: str) -> list[Choice]:
    """The corpora that serve the role, after the one that suits the model."""
    known = [(_titled(c.title, c.ready), c.name) for c in corpora.corpora() if role in c.roles]
    return [("Auto: what suits the model", "auto"), *known]


def _titled(title: str, ready: bool) -> str:
    return title if ready else f"{title} (not set up)"


CHOICES: Mapping[str, Callable[[], list[Choice]]] = {
    "model": models,
    "calibration_text": partial(texts, "calibration"),
    "evaluation_text": partial(texts, "evaluation"),
}

# what happens -------------------------------------------------------------------------------------


def _wire(
    this: KindForm,
    method: gr.Radio,
    name: gr.Textbox,
    add: gr.Button,
    told: gr.HTML,
    preview: Board,
) -> None:
    """Preview on every change; presets; the button."""
    form, inputs = this.form, this.form.inputs
    outputs = [*form.messages, form.accordion, preview]

    def look(kind: str, *given: Any) -> Any:
        if kind != this.kind.name:
            return gr.skip()
        values = form.values(given)
        html, error = preview_of(this.kind, values)
        return {**form.complain(error), **form.count(values), preview: html}

    def queue(request: gr.Request, kind: str, text: str, *given: Any) -> Any:
        if kind != this.kind.name:
            return gr.skip()
        message, error = enqueue(this.kind, text, form.values(given), request)
        return {**form.complain(error), told: message}

    def use(preset: str) -> Any:
        return form.show(this.kind.preset("" if preset == NO_PRESET else preset))

    changes = [method.change, *(c.change for c in inputs)]
    gr.on(changes, look, [method, *inputs], outputs, **LATEST)
    on_load(look, [method, *inputs], outputs)
    this.preset.input(use, this.preset, inputs, **READER)
    queued = [*form.messages, form.accordion, told]
    add.click(
        queue, [method, name, *inputs], queued, show_progress="hidden", api_visibility="private"
    )


def _show_kind(names: list[str]) -> Callable[[str], Any]:
    def show(kind: str) -> Any:
        updates = [gr.update(visible=name == kind) for name in names]
        return updates if len(updates) > 1 else updates[0]

    return show


def _wire_arrival(
    forms: Mapping[str, KindForm], method: gr.Radio, name: gr.Textbox, add: gr.Button, told: gr.HTML
) -> None:
    """On arrival: what can be chosen today; the kind and, with `?from=`, the config of a run; the
    button off for guests."""
    inputs = [c for this in forms.values() for c in this.form.inputs]
    columns = [this.column for this in forms.values()]

    def arrive(request: gr.Request) -> dict[Any, Any]:
        old = _old(query(request, "from"))
        asked = old.kind if old else query(request, "kind")
        updates = _guest(add, told) if actor(request).role != "host" else {}
        for kind, this in forms.items():
            values = old.config if old and old.kind == kind else None
            updates |= this.form.arrival(values)
            if asked in forms:
                updates[this.column] = gr.update(visible=kind == asked)
        if asked in forms:
            updates |= {method: asked, name: old.name if old else ""}
        return updates

    on_load(arrive, None, [method, name, add, told, *columns, *inputs])


def _guest(add: gr.Button, told: gr.HTML) -> dict[Any, Any]:
    return {add: gr.update(interactive=False), told: said(f'<p class="quiet">{GUEST}</p>')}


def _old(run: str) -> Job | None:
    """The run to clone, None when there is no such run."""
    try:
        return queries.job(run) if run else None
    except SlimscopeError:
        return None


def preview_of(kind: Kind, values: Mapping[str, Any]) -> tuple[str, SlimscopeError | None]:
    """HTML: what will be queued and what it costs; and the error, for its field."""
    command = submit.command_line(kind.name, values)
    try:
        config, estimate = submit.checked(kind.name, values)
    except SlimscopeError as error:
        return stack("" if error.field else problem(error), shell(command)), error
    about = {
        "Time": f"about {duration(estimate.seconds)}" if estimate.seconds else "not known yet",
        "Memory": f"about {size(estimate.bytes)}",
        "Estimated from": esc(estimate.basis),
    }
    warnings = "".join(f'<p class="warn">⚠ {esc(text)}</p>' for text in estimate.warnings)
    return stack(facts(_model(config) | about), warnings, shell(command)), None


def _model(config: Any) -> dict[str, str]:
    if not hasattr(config, "model"):
        return {}
    facts = catalogue.inspect(config.model)
    shape = f"{short_count(facts.parameters)} weights, {facts.blocks} blocks"
    note = f'<br><span class="quiet">{esc(facts.note)}</span>' if facts.note else ""
    return {"Model": f"{esc(facts.title)}: {shape}{note}"}


def enqueue(
    kind: Kind, name: str, values: Mapping[str, Any], request: gr.Request
) -> tuple[Any, SlimscopeError | None]:
    """Puts the run into the queue; says where it stands there, or what is wrong."""
    try:
        job = submit.submit(kind.name, values, actor(request), name=name or "")
    except SlimscopeError as error:
        return failed(error), error
    supervisor.ensure()
    place = queries.status().position(job.id)
    where = f"It is number {place} in the queue." if place else "It is about to start."
    links = (
        f'<a href="{href("run", id=job.run)}">Open the run</a> '
        f'<a href="{href("jobs", id=job.run)}">See the queue</a>'
    )
    return done(f"<b>✓ {esc(job.run)} was added.</b> {where} {links}"), None


PAGE = Page("Launch", "launch", build)
