"""Launch: build a config, see what it will cost, put it into the queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from backend.models.sources import catalogue
from backend.queue import roles
from backend.store import queries
from backend.store.tables import Job
from backend.text import corpora
from jobs import submit, sweep
from jobs.fields.drafters import finished_drafters
from jobs.kind import JobConfig, Kind, kinds
from ui.format import duration, esc, href, short_count, size
from ui.format import runs as counted
from ui.frame import SILENT_EVENT, Page, current_user, on_load, query, url_sync
from ui.pages.launch.sweep_form import SweepForm
from ui.runs.html import run_link
from ui.runs.queue_eta import start_times, start_words
from ui.runs.results import setting_summary
from ui.widgets.config_form import Choice, ConfigForm, title
from ui.widgets.html import empty, facts, problem, shell, stack
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, plain, show_error, show_html, show_success

NO_PRESET = "default"
ADD = "Add to queue"
MOST_LINKS = 3  # to runs of the same config
Pairs = Sequence[tuple[str, str]]  # field and its values, as they were written


@dataclass(frozen=True)
class KindForm:
    """The form of one kind, and the column it stands in."""

    kind: Kind
    column: gr.Column
    preset: gr.Radio
    form: ConfigForm
    sweep: SweepForm

    @property
    def inputs(self) -> list[Any]:
        return [*self.form.inputs, *self.sweep.inputs]

    @property
    def messages(self) -> list[gr.HTML]:
        return [*self.form.messages, *self.sweep.messages]

    def read(self, given: Sequence[Any]) -> tuple[dict[str, Any], Pairs]:
        """The values of the config, and the fields that are swept with theirs."""
        own = len(self.form.inputs)
        return self.form.values(given[:own]), self.sweep.pairs(given[own:])

    def complain(self, error: SlimscopeError | None, given: Sequence[Any]) -> dict[Any, Any]:
        """Updates that show the error beside its field, in the sweep when it is swept."""
        swept = given[len(self.form.inputs) :]
        mine = None if self.sweep.holds(error, swept) else error
        return {**self.form.complain(mine), **self.sweep.complain(error, swept)}


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
            add = gr.Button(ADD, variant="primary", elem_id="launch-add")
            told = notice("launch-said")
            preview = HtmlPanel(elem_id="launch-preview", min_height=240)
    for form in forms.values():
        _wire(form, method, name, add, told, preview)
    columns = [form.column for form in forms.values()]
    chosen = method.input(_show_kind(list(forms)), method, columns, **SILENT_EVENT)
    url_sync(chosen, kind=method)
    _wire_arrival(forms, method, name, add, told)


def _form(kind: Kind, *, visible: bool) -> KindForm:
    prefix = f"{kind.name}-"
    with gr.Column(visible=visible, elem_id=f"form-{kind.name}") as column:
        plain(f'<p class="quiet">{esc(kind.summary)}</p>')
        preset = gr.Radio(
            [NO_PRESET, *(p for p in kind.presets if p != NO_PRESET)],
            value=NO_PRESET,
            label="Preset",
            visible=bool(kind.presets),
            elem_id=f"preset-{kind.name}",
        )
        form = ConfigForm(kind.config, CHOICES, prefix)
        sweeps = SweepForm(kind.config, prefix)
    return KindForm(kind, column, preset, form, sweeps)


def preset_words(kind: Kind, values: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What a preset of these `values` sets, in a line, and what the one `before` set no longer."""
    fields = kind.config.model_fields
    sets = [f"{title(name, fields[name])} {_said(value)}" for name, value in values.items()]
    back = [title(name, fields[name]) for name in before if name not in values]
    parts = {"Sets": sets, "Back to default:": back}
    return " ".join(f"{verb} {'; '.join(each)}." for verb, each in parts.items() if each)


def _said(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


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


def saved() -> list[Choice]:
    """The runs that left a model, the newest first, then all models."""
    held = queries.model_bytes()
    runs = [(f"{job.run} {job.name}".strip(), job.run) for job in queries.jobs() if job.id in held]
    return [*runs, *models()]


def drafters() -> list[Choice]:
    """The runs that trained a drafter, with its base and what tells it from others."""
    return [("None", ""), *trained()]


def trained() -> list[Choice]:
    """Every drafter, as people tell it from others."""
    return [
        (f"{job.run} for {job.config['model']}: {', '.join(setting_summary(job))}", job.run)
        for job in finished_drafters()
    ]


CHOICES: Mapping[str, Callable[[], list[Choice]]] = {
    "drafters": drafters,
    "model": models,
    "saved": saved,
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
    preview: HtmlPanel,
) -> None:
    """Preview on every change; presets; the button."""
    form, inputs = this.form, this.inputs
    outputs = [*this.messages, form.accordion, this.sweep.accordion, add, preview]

    def look(request: gr.Request, kind: str, *given: Any) -> Any:
        if kind != this.kind.name:
            return gr.skip()
        values, pairs = this.read(given)
        if roles.may_not_add(current_user(request)):
            html, runs, error = unchecked(this.kind, values)
        else:
            html, runs, error = preview_of(this.kind, values, pairs)
        words = {add: gr.update(value=f"Add {runs} runs to queue" if runs > 1 else ADD)}
        counts = {**form.count(values), **this.sweep.count(runs), **words}
        return {**this.complain(error, given), **counts, preview: html}

    def queue(request: gr.Request, kind: str, text: str, *given: Any) -> Any:
        if kind != this.kind.name:
            return gr.skip()
        message, error = enqueue(this.kind, text, *this.read(given), request)
        return {**this.complain(error, given), told: message}

    def use(preset: str, before: str) -> dict[Any, Any]:
        values, old = (this.kind.presets.get(name, {}) for name in (preset, before))
        words = {this.preset: gr.update(info=preset_words(this.kind, values, old)), last: preset}
        return {**form.show(values, {*values, *old}), **words}

    changes = [method.change, *(c.change for c in inputs)]
    gr.on(changes, look, [method, *inputs], outputs, **LATEST)
    on_load(look, [method, *inputs], outputs)
    last = gr.State(NO_PRESET)
    this.preset.input(use, [this.preset, last], [this.preset, last, *form.inputs], **SILENT_EVENT)
    queued = [*this.messages, form.accordion, told]
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
    """On arrival: what can be chosen today; the kind and, with `?from=`, the config of a run or,
    with `?model=` and the like, the fields named; the button off for guests."""
    inputs = [c for this in forms.values() for c in this.form.inputs]
    columns = [this.column for this in forms.values()]

    def arrive(request: gr.Request) -> dict[Any, Any]:
        old = _old(query(request, "from"))
        asked = old.kind if old else query(request, "kind")
        reason = roles.may_not_add(current_user(request))
        updates = _closed(add, told, reason) if reason else {}
        for kind, this in forms.items():
            values = given_in(request, this.kind.config) if kind == asked else {}
            updates |= this.form.arrival(old.config if old and kind == asked else values or None)
            if asked in forms:
                updates[this.column] = gr.update(visible=kind == asked)
        if asked in forms:
            updates |= {method: asked, name: old.name if old else ""}
        return updates

    on_load(arrive, None, [method, name, add, told, *columns, *inputs])


def given_in(request: gr.Request, config: type[JobConfig]) -> dict[str, str]:
    """The texts among the fields of `config` that the address names."""
    texts = [name for name, info in config.model_fields.items() if info.annotation is str]
    return {name: value for name in texts if (value := query(request, name))}


def _closed(add: gr.Button, told: gr.HTML, reason: str) -> dict[Any, Any]:
    html = f'<p class="quiet">{esc(reason)} {roles.ASK}</p>'
    return {add: gr.update(interactive=False), told: show_html(html)}


def _old(run: str) -> Job | None:
    """The run to clone, None when there is no such run."""
    try:
        return queries.job(run) if run else None
    except SlimscopeError:
        return None


def unchecked(kind: Kind, values: Mapping[str, Any]) -> tuple[str, int, SlimscopeError | None]:
    """As `preview_of` for who may add nothing: no model is looked for, here or on the hub."""
    return stack(shell(submit.command_line(kind.name, values))), 0, None


def preview_of(
    kind: Kind, values: Mapping[str, Any], pairs: Pairs = ()
) -> tuple[str, int, SlimscopeError | None]:
    """HTML: what will be queued and what it costs; how many runs; and the error, for its field."""
    swept: dict[str, list[str]] = {}
    try:
        swept = sweep.read(kind.name, pairs)
        made = sweep.plan(kind.name, values, swept)
    except SlimscopeError as error:
        command = submit.command_line(kind.name, values, swept)
        return stack("" if error.field is not None else problem(error), shell(command)), 0, error
    runs, cost = len(made.configs), made.estimate
    about = {
        "Adds": counted(runs),
        "Time": _time(cost.seconds, runs),
        "Memory": f"about {size(cost.bytes)}",
        "Estimated from": esc(cost.basis),
    }
    warnings = "".join(f'<p class="warn">⚠ {esc(text)}</p>' for text in cost.warnings)
    notes = "".join(f'<p class="quiet">{esc(text)}</p>' for text in cost.notes)
    command = submit.command_line(kind.name, values, swept)
    told = facts(_model(made.configs) | about | _repeats(kind, made.configs))
    return stack(told, notes, warnings, shell(command)), runs, None


def _repeats(kind: Kind, configs: Sequence[JobConfig]) -> dict[str, str]:
    """Which of these runs have been run, or wait, already: the same config has the same result."""
    jobs = queries.same(kind.name, (config.model_dump(mode="json") for config in configs))
    links = ", ".join(map(run_link, jobs[:MOST_LINKS]))
    more = f" and {len(jobs) - MOST_LINKS} more" if len(jobs) > MOST_LINKS else ""
    return {"Same as": links + more} if jobs else {}


def _time(seconds: float | None, runs: int) -> str:
    if not seconds:
        return "not known yet"
    return f"about {duration(seconds)}{f' for all {runs}' if runs > 1 else ''}"


def _model(configs: Sequence[Any]) -> dict[str, str]:
    specs = dict.fromkeys(config.model for config in configs if hasattr(config, "model"))
    return {"Model": "<br>".join(map(_shape, specs))} if specs else {}


def _shape(spec: str) -> str:
    try:
        known = catalogue.inspect(spec)
    except SlimscopeError:  # a run; its kind knows where its model is
        return esc(spec)
    shape = f"{short_count(known.parameters)} weights, {known.blocks} blocks"
    note = f'<br><span class="quiet">{esc(known.note)}</span>' if known.note else ""
    return f"{esc(known.title)}: {shape}{note}"


def enqueue(
    kind: Kind, name: str, values: Mapping[str, Any], pairs: Pairs, request: gr.Request
) -> tuple[Any, SlimscopeError | None]:
    """Puts the runs into the queue; says where they stand there, or what is wrong."""
    try:
        swept = sweep.read(kind.name, pairs)
        jobs = sweep.queue(kind.name, values, swept, current_user(request), name=name or "")
    except SlimscopeError as error:
        return show_error(error), error
    first = jobs[0]
    where = _place(first)
    if len(jobs) == 1:
        what, page = "The run was added.", ("run", "Open the run")
    else:
        what, page = f"{len(jobs)} runs were added.", ("sweep", "Open the sweep")
    links = (
        f'<a href="{href(page[0], id=first.run)}">{page[1]}</a> '
        f'<a href="{href("jobs", id=first.run)}">See the queue</a>'
    )
    return show_success(f"<b>✓ {what}</b> {where} {links}"), None


def _place(job: Job) -> str:
    """HTML: where the job stands in the queue, and when it may start."""
    status = queries.status()
    place = status.position(job.id)
    if not place:
        return f"{esc(job.run)} is about to start."
    when = start_words(start_times(status).get(job.id))
    return f"{esc(job.run)} is number {place} in the queue{f' and {when}' if when else ''}."


PAGE = Page("Launch", "launch", build, order=10, key="l")
