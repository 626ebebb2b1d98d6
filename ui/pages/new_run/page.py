"""New run: configure a run, see what it will cost, and add it to the queue."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr
from gradio.events import Dependency
from markupsafe import Markup

from backend.errors import NotFoundError, SlimscopeError
from backend.queue import permissions
from jobs.kind import Kind, kinds
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, on_load, query, url_sync
from ui.pages.new_run.preview import HTML, Pairs, SweepForm, enqueue, preview_for, price
from ui.runs.choices import CHOICES
from ui.runs.results import find_job
from ui.widgets.config_form import NO_CHOICES, ConfigForm, address_values, title
from ui.widgets.dropdown import Choices
from ui.widgets.html import LATEST, HtmlPanel, notice, plain, show_error, show_html

ADD = "Add to queue"
FORGET = """() => {
  const said = document.querySelector('#new-said :is(.problem, .done)');
  return { __type__: 'update', ...(said ? { value: '', visible: false } : {}) };
}"""


@dataclass(frozen=True)
class OptionCards:
    """Recipes or presets of a kind as cards, each with its price."""

    radio: gr.Radio
    values: Mapping[str, Mapping[str, Any]]  # name -> the fields it sets

    @property
    def fields(self) -> set[str]:
        """The fields that any of them sets."""
        return {field for values in self.values.values() for field in values}

    def priced(self, kind: Kind, values: Mapping[str, Any]) -> Any:
        """An update with what each would cost beside the other values of the form."""
        others = {name: value for name, value in values.items() if name not in self.fields}
        prices = {name: price(kind, {**others, **own}) for name, own in self.values.items()}
        return gr.update(choices=cards(self.values, kind.notes, prices))


@dataclass(frozen=True)
class KindForm:
    """The form of one kind, and the column it stands in; its preview is `due` when that changes."""

    kind: Kind
    column: gr.Column
    options: tuple[OptionCards, ...]
    form: ConfigForm
    sweep: SweepForm
    due: gr.Textbox

    @property
    def inputs(self) -> list[Any]:
        return [*self.form.inputs, *self.sweep.inputs]

    @property
    def messages(self) -> list[gr.HTML]:
        return [*self.form.messages, *self.sweep.messages]

    def read(self, given: Sequence[Any]) -> tuple[dict[str, Any], Pairs]:
        """The values of the config, and the swept fields with theirs."""
        own = len(self.form.inputs)
        return self.form.values(given[:own]), self.sweep.pairs(given[own:])

    def show_errors(
        self,
        error: SlimscopeError | None,
        given: Sequence[Any],
        warnings: Mapping[str, str] = NO_CHOICES,
    ) -> dict[Any, Any]:
        """Updates that show the error beside its field, in the sweep when the field is swept."""
        swept = given[len(self.form.inputs) :]
        own = None if self.sweep.rows_of(error, swept) else error
        return {**self.form.show_errors(own, warnings), **self.sweep.show_errors(error, swept)}


def build() -> None:
    available = kinds()
    if not available:
        plain(HTML.nothing())
        return
    first = next(iter(available))
    with gr.Row(elem_classes="new-run"):
        with gr.Column(scale=2, min_width=320):
            kind = gr.Radio(methods(), value=first, label="Compress a model", elem_id="new-kind")
            others = plain(others_html())
            forms = {n: _form(each, visible=n == first) for n, each in available.items()}
        with gr.Column(scale=1, min_width=320, elem_classes="new-side"):
            name = gr.Textbox(
                label="Name of the run",
                info="Optional label",
                max_length=120,
                max_lines=1,
                elem_id="new-name",
            )
            add = gr.Button(ADD, variant="primary", elem_id="new-add")
            message = notice("new-said")
            preview = HtmlPanel(elem_id="new-preview", min_height=240)
    for own, form in forms.items():
        previewed = _wire_form(form, kind, add, preview)
        # where this kind was left meanwhile, of the next one
        _preview_after(previewed, {n: f for n, f in forms.items() if n != own}, kind)
    other = _wire_kind(forms, kind)
    arrived = _wire_arrival(forms, kind, others, name, add, message)
    for shown in (arrived, other):
        _preview_after(shown, forms, kind)
    _wire_button(forms, kind, name, add, message)
    url_sync(other, kind=kind)


def methods(chosen: str = "") -> list[tuple[str, str]]:
    """The kinds that compress a model, and the one that was asked for."""
    return [(k.title, name) for name, k in kinds().items() if k.compresses or name == chosen]


def others_html(chosen: str = "") -> Markup:
    """Links to the other kinds, without the one that was asked for."""
    return HTML.others([k for n, k in kinds().items() if not k.compresses and n != chosen])


def _form(kind: Kind, *, visible: bool) -> KindForm:
    prefix = f"{kind.name}-"
    # beside the column: what is not shown raises no event
    due = gr.Textbox("0", visible="hidden", elem_id=f"{prefix}preview-due")
    with gr.Column(visible=visible, elem_id=f"form-{kind.name}") as column:
        plain(HTML.hint(kind.summary))
        recipes = _cards(kind, "Recipe", kind.recipes, next(iter(kind.recipes), None))
        presets = _cards(kind, "Preset", kind.presets, "default")
        form = ConfigForm(kind.config, CHOICES, prefix, kind.main_fields)
        sweeps = SweepForm(kind.config, prefix)
    return KindForm(kind, column, (recipes, presets), form, sweeps, due)


def _cards(
    kind: Kind, label: str, values: Mapping[str, Mapping[str, Any]], first: str | None
) -> OptionCards:
    radio = gr.Radio(
        cards(values, kind.notes, {}),
        value=first if values else None,
        label=label,
        visible=len(values) > 1,
        elem_id=f"{label.lower()}-{kind.name}",
        elem_classes="preset-cards",
    )
    return OptionCards(radio, values)


def _wire_kind(forms: Mapping[str, KindForm], kind: gr.Radio) -> Dependency:
    """Shows the form of a kind, with the model that was chosen in the one before."""
    before = gr.Textbox(next(iter(forms)), visible=False)
    named = {n: f.form.fields["model"].input for n, f in forms.items() if "model" in f.form.fields}

    def show(chosen: str, last: str, *models: Any) -> dict[Any, Any]:
        updates = {form.column: gr.update(visible=n == chosen) for n, form in forms.items()}
        given = dict(zip(named, models, strict=True))
        kept = {named[chosen]: given[last]} if last in named and chosen in named else {}
        return {before: chosen, **updates, **kept}

    models = [*named.values()]
    outputs = [before, *(form.column for form in forms.values()), *models]
    return kind.input(show, [kind, before, *models], outputs, **SILENT_EVENT)


# presets, preview, queueing -----------------------------------------------------------------------


def _wire_form(this: KindForm, kind: gr.Radio, button: gr.Button, shown: HtmlPanel) -> Dependency:
    """Presets, and the preview: of each kind one event, whose answers come in order, as those of
    several could overtake each other. What the page changes itself is previewed once all of it is
    there: an event of each field would send those that are there so far."""

    def preview(request: gr.Request, chosen: str, *given: Any) -> Any:
        if chosen != this.kind.name:
            return gr.skip()
        values, pairs = this.read(given)
        user = current_user(request)
        html, runs, error, warnings = preview_for(user, this.kind, values, pairs)
        priced = () if permissions.may_not_add(user) else this.options
        return {
            **this.show_errors(error, given, warnings),
            **this.form.count(values),
            **this.sweep.count(runs),
            **{option.radio: option.priced(this.kind, values) for option in priced},
            button: gr.update(value=f"Add {runs} runs to queue" if runs > 1 else ADD),
            shown: html,
        }

    # the `input` of a text box is raised before the text is there
    changes = [c.change if isinstance(c, gr.Textbox) else c.input for c in this.inputs]
    asked, inputs = [*changes, this.due.change], [kind, *this.inputs]
    own = [*this.messages, *this.form.accordions.values(), this.sweep.accordion]
    outputs = [*own, *(option.radio for option in this.options), button, shown]
    previewed = gr.on(asked, preview, inputs, outputs, **LATEST)
    for option in this.options:
        applied = option.radio.input(
            _apply(this, option), option.radio, [option.radio, *this.form.inputs], **SILENT_EVENT
        )
        _preview_after(applied, {this.kind.name: this}, kind)
    return previewed


def _preview_after(shown: Dependency, forms: Mapping[str, KindForm], kind: gr.Radio) -> None:
    """Asks for the preview of the chosen kind, if it is one of these, after an event that shows
    something in its form."""
    dues, names = [form.due for form in forms.values()], json.dumps([*forms])
    js = f"(kind, ...n) => {names}.map((name, i) => String(+n[i] + (name === kind)))"
    shown.then(None, [kind, *dues], dues, js=js)


def _wire_button(
    forms: Mapping[str, KindForm],
    kind: gr.Radio,
    label: gr.Textbox,
    button: gr.Button,
    message: gr.HTML,
) -> None:
    """The button that adds runs: one event for all forms, which sends their inputs, as each event
    costs the browser more than what it sends. Its message goes when a person changes something; why
    nothing can be added stays. The browser does it: an answer of the server could come after that
    of the button."""
    every = [c for form in forms.values() for c in form.inputs]

    def add(request: gr.Request, chosen: str, name: str, *given: Any) -> dict[Any, Any]:
        this, rest = forms[chosen], iter(given)
        values = {n: [*islice(rest, len(form.inputs))] for n, form in forms.items()}[chosen]
        said, error = enqueue(this.kind, name, *this.read(values), request)
        return {**this.show_errors(error, values), message: said}

    told = [c for form in forms.values() for c in (*form.messages, *form.form.accordions.values())]
    button.click(add, [kind, label, *every], [*told, message], **PRIVATE_EVENT)
    radios = [option.radio for form in forms.values() for option in form.options]
    changed = [c.input for c in (kind, label, *every, *radios)]
    gr.on(changed, None, None, message, js=FORGET)


def cards(names: Iterable[str], notes: Mapping[str, str], prices: Mapping[str, str]) -> Choices:
    """Choices as cards: name, what it does, and its price; a line each."""
    lines = ((name, notes.get(name), prices.get(name)) for name in names)
    return [("\n".join(filter(None, each)), str(each[0])) for each in lines]


def _apply(this: KindForm, option: OptionCards) -> Callable[[str], dict[Any, Any]]:
    def apply_option(name: str) -> dict[Any, Any]:
        values, fields = option.values.get(name, {}), this.kind.config.model_fields
        switch = {True: "on", False: "off"}
        sets = [
            f"{title(name, fields[name])} = {switch[v] if isinstance(v, bool) else v}"
            for name, v in values.items()
        ]
        info = gr.update(info=f"Sets {'; '.join(sets)}." if sets else "")
        return {**this.form.show(values, option.fields), option.radio: info}

    return apply_option


# arrival ------------------------------------------------------------------------------------------


def _wire_arrival(
    forms: Mapping[str, KindForm],
    kind: gr.Radio,
    others: gr.HTML,
    name: gr.Textbox,
    button: gr.Button,
    message: gr.HTML,
) -> Dependency:
    """On arrival: the current choices; the kind and, with `?from=`, the config of a run or, with
    `?model=` and the like, single values; the button disabled for guests."""

    def arrive(request: gr.Request) -> dict[Any, Any]:
        source, asked = query(request, "from"), query(request, "kind")
        clone = find_job(source)
        chosen = clone.kind if clone else asked
        updates: dict[Any, Any] = {}
        if source and clone is None:
            missing = NotFoundError(f"There is no run {source}.", "", "The form is a new one.")
            updates[message] = show_error(missing)
        elif chosen and chosen not in forms:
            what = f"There is no kind of run called {chosen[:40]!r}."
            updates[message] = show_error(NotFoundError(what, "", "Choose a method."))
        if reason := permissions.may_not_add(current_user(request)):
            why = HTML.hint(f"{reason} {permissions.ASK}")
            updates |= {
                button: gr.update(interactive=False),
                message: show_html(why),
            }
        for each, this in forms.items():
            values = address_values(request, this.kind.config) if each == chosen else {}
            config = clone.config if clone and each == chosen else values
            updates |= this.form.initial_updates(config)
            if chosen in forms:
                updates[this.column] = gr.update(visible=each == chosen)
        if chosen in forms:
            shown = gr.update(choices=methods(chosen), value=chosen)
            updates |= {kind: shown, name: clone.name if clone else ""}
            updates[others] = others_html(chosen)
        return updates

    inputs = [c for this in forms.values() for c in this.form.inputs]
    columns = [this.column for this in forms.values()]
    own = [kind, others, name, button, message]
    return on_load(arrive, None, [*own, *columns, *inputs])


PAGE = Page("New run", "new", build, order=10)  # "n" leads here
