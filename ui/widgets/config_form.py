"""A form drawn from a pydantic config.

Type, bounds, default, unit and help text stand once, in the config; this module turns each field
into a Gradio component and the components' values back into a dict. Bounds are left to pydantic,
so that a bad value is explained beside its field and nothing typed is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Checkbox, Dropdown, Number, Radio, Textbox
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backend.errors import SlimscopeError
from ui.format import esc
from ui.widgets.notice import notice, plain

Input = Checkbox | Dropdown | Number | Radio | Textbox
Choice = tuple[str, str]  # what is read, what is stored
RADIO_LETTERS = 18  # so many letters of options fit side by side
NOTHING: Mapping[str, Any] = MappingProxyType({})
FIRST = "Model and method"
SECTIONS = {"TextConfig": "Text", "EvaluationText": "Text", "JobConfig": "Run"}


def owner(config: type[BaseModel], name: str) -> type:
    """The class that declares field `name` of `config`."""
    return next(c for c in config.__mro__ if name in get_annotations(c))


def extra(info: FieldInfo) -> dict[str, Any]:
    """The field's `json_schema_extra`, empty when there is none."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def advanced(info: FieldInfo) -> bool:
    """Whether the field is for those who know the method."""
    return bool(extra(info).get("advanced"))


def title(name: str, info: FieldInfo) -> str:
    """What people read above the field, with its unit."""
    unit = extra(info).get("unit")
    text = info.title or name.replace("_", " ").capitalize()
    repeated = unit and str(unit) in text.lower()
    return f"{text} ({unit})" if unit and not repeated else text


def sections(config: type[BaseModel]) -> dict[str, list[str]]:
    """Heading -> its field names: the kind's own fields first, what all kinds share last."""
    found: dict[str, list[str]] = {}
    for cls in config.__mro__:
        names = [n for n in config.model_fields if owner(config, n) is cls]
        heading = SECTIONS.get(cls.__name__, FIRST)
        if names:
            found.setdefault(heading, []).extend(names)
    return found


def component(
    name: str, info: FieldInfo, choices: Sequence[Choice] = (), prefix: str = ""
) -> Input:
    """The component that suits the field's type; `choices` may be added to by typing. `prefix`
    starts its id on the page."""
    common: dict[str, Any] = {
        "label": title(name, info),
        "info": info.description,
        "value": info.default,
        "elem_id": f"{prefix}field-{name.replace('_', '-')}",
    }
    options = [str(o) for o in get_args(info.annotation)]
    suggested = choices or [(str(e), str(e)) for e in info.examples or ()]
    if get_origin(info.annotation) is Literal:
        radio = sum(map(len, options)) <= RADIO_LETTERS
        return gr.Radio(options, **common) if radio else gr.Dropdown(options, **common)
    if info.annotation is bool:
        return gr.Checkbox(**common)
    if info.annotation in (int, float):
        return gr.Number(**common, step=1 if info.annotation is int else 0.01)
    if extra(info).get("many"):
        common["value"] = _parts(info.default)
        several = [choice for choice in suggested if choice[1]]
        return gr.Dropdown(several, multiselect=True, allow_custom_value=True, **common)
    if suggested:
        return gr.Dropdown(list(suggested), allow_custom_value=True, **common)
    lines = int(extra(info).get("lines", 1))
    return gr.Textbox(lines=lines, max_lines=lines, **common)


def _parts(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def complaint(error: SlimscopeError) -> str:
    """What happened, why, what to do; announced by screen readers when it appears."""
    what, why, do = (esc(part) for part in (error.what, error.why, error.do))
    rest = " ".join(part for part in (why, do) if part)
    return f'<p class="field-error" role="alert"><b>{what}</b> {rest}</p>'


@dataclass(frozen=True)
class Field:
    """One field on the screen: its input, and the message slot under it."""

    name: str
    info: FieldInfo
    input: Input
    message: gr.HTML

    def held(self, values: Mapping[str, Any]) -> Any:
        """What the input holds for a config's `values`."""
        value = values.get(self.name, self.info.default)
        return _parts(value) if extra(self.info).get("many") else value


class ConfigForm:
    """The inputs of one config class; draw it inside a Blocks context.

    Args:
        config: the pydantic class.
        choices: what can be chosen today in a free-text field, by its `choices` of the config's
            `json_schema_extra`, or else by its name.
        prefix: starts the ids of its elements, where a page has several forms.
    """

    def __init__(
        self,
        config: type[BaseModel],
        choices: Mapping[str, Callable[[], list[Choice]]] = NOTHING,
        prefix: str = "",
    ) -> None:
        self.config, self.prefix = config, prefix
        named = {n: str(extra(info).get("choices", n)) for n, info in config.model_fields.items()}
        self.choices = {n: choices[name] for n, name in named.items() if name in choices}
        self.fields: dict[str, Field] = {}
        hidden: list[str] = []
        for heading, names in sections(config).items():
            hidden += [n for n in names if advanced(config.model_fields[n])]
            shown = [n for n in names if n not in hidden]
            self._section(heading, sorted(shown, key=lambda n: n != "model"))  # the model leads
        self.accordion = gr.Accordion("Advanced", open=False, elem_classes="form-advanced")
        with self.accordion:
            self._section("", hidden)
        self.fields = {n: self.fields[n] for n in config.model_fields}

    def _section(self, heading: str, names: list[str]) -> None:
        if heading and names:
            plain(f"<h3>{esc(heading)}</h3>", elem_classes="form-heading")
        with gr.Row(elem_classes="form-grid"):
            for name in names:
                with gr.Column(min_width=200, elem_classes="form-field"):
                    self._field(name)

    def _field(self, name: str) -> None:
        info = self.config.model_fields[name]
        message = f"{self.prefix}message-{name.replace('_', '-')}"
        self.fields[name] = Field(
            name,
            info,
            component(
                name, info, self.choices[name]() if name in self.choices else (), self.prefix
            ),
            notice(message),
        )

    @property
    def inputs(self) -> list[Input]:
        """In the order of the config's fields."""
        return [f.input for f in self.fields.values()]

    @property
    def messages(self) -> list[gr.HTML]:
        return [f.message for f in self.fields.values()]

    def values(self, given: Iterable[Any]) -> dict[str, Any]:
        """What the inputs hold, by field name; an emptied number is left out, to be refused."""
        held = (", ".join(map(str, v)) if isinstance(v, list) else v for v in given)
        return dict(zip(self.fields, held, strict=True))

    def show(
        self, values: Mapping[str, Any], only: Collection[str] | None = None
    ) -> dict[Any, Any]:
        """Updates that put `values` into the inputs; fields not named go back to their default,
        all of them or those of `only`."""
        return {
            field.input: gr.update(value=field.held(values))
            for name, field in self.fields.items()
            if only is None or name in only
        }

    def arrival(self, values: Mapping[str, Any] | None) -> dict[Any, Any]:
        """Updates for a page that opens: today's choices, and `values` when there are any."""
        updates: dict[Any, Any] = dict(self.show(values)) if values is not None else {}
        for name, now in self.choices.items():
            field = self.fields[name]
            value = {"value": field.held(values)} if values is not None else {}
            updates[field.input] = gr.update(choices=now(), **value)
        return updates

    def changed(self, values: Mapping[str, Any]) -> list[str]:
        """Names of the fields that differ from their default."""
        return [n for n, f in self.fields.items() if values.get(n) != f.info.default]

    def count(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Update that says on the closed accordion how many of its fields were changed."""
        n = sum(advanced(self.fields[name].info) for name in self.changed(values))
        return {self.accordion: gr.update(label=f"Advanced · {n} changed" if n else "Advanced")}

    def complain(self, error: SlimscopeError | None) -> dict[Any, Any]:
        """Updates that show `error` and its `others`, each beside its field, and clear all other
        messages. The accordion opens when a field is inside it."""
        found = {each.field: each for each in (error, *error.others)} if error else {}
        updates: dict[Any, Any] = {}
        for field in self.fields.values():
            wrong = found.get(field.name)
            html = complaint(wrong) if wrong else ""
            updates[field.message] = gr.update(value=html, visible=bool(wrong))
            if wrong and advanced(field.info):
                updates[self.accordion] = gr.update(open=True)
        return updates
