"""The form of a pydantic config, which declares the type, default, unit and help of each field.

Inputs do not enforce bounds: pydantic validates the values, so that an error appears next to its
field and the typed value stays."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from types import MappingProxyType
from typing import Any, Literal, get_origin

import gradio as gr
from gradio.components import Checkbox, Dropdown, Number, Radio, Textbox
from markupsafe import Markup
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backend.errors import SlimscopeError
from backend.models.layer_names import read_names
from jobs.fields.types import options
from ui.frame import query
from ui.templates import fragments
from ui.widgets.dropdown import Choices
from ui.widgets.html import notice, plain

HTML = fragments("widgets/config_form.html")
field_error = HTML.field_error  # screen readers announce it when it appears
Input = Checkbox | Dropdown | Number | Radio | Textbox
ZERO_MEANING = re.compile(r"\b0: ([^.;]+)")  # the meaning of 0 in the help of a field
NO_CHOICES: Mapping[str, Any] = MappingProxyType({})
FIRST, ADVANCED = "Method", "Advanced"
SECTIONS = {
    "ContextLength": "Text",
    "CalibrationText": "Text",
    "EvaluationText": "Text",
    "JobConfig": "Run",
}


def owner(config: type[BaseModel], name: str) -> type:
    """The config class that declares a field."""
    return next(c for c in config.__mro__ if name in get_annotations(c))


def extra(info: FieldInfo) -> dict[str, Any]:
    """Our metadata of a field, such as its unit."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def advanced(info: FieldInfo) -> bool:
    """Return True for an advanced field."""
    return bool(extra(info).get("advanced"))


def title(name: str, info: FieldInfo) -> str:
    """The title of a field with its unit, as in "Context length (tokens)"."""
    unit = extra(info).get("unit")
    text = info.title or name.replace("_", " ").capitalize()
    has_unit = unit and str(unit) in text.lower()
    return f"{text} ({unit})" if unit and not has_unit else text


def sections(config: type[BaseModel]) -> dict[str, list[str]]:
    """Field names by heading: the fields of the kind first, fields of all kinds last."""
    by_heading: dict[str, list[str]] = {}
    for cls in config.__mro__:
        names = [n for n in config.model_fields if owner(config, n) is cls]
        heading = SECTIONS.get(cls.__name__, FIRST)
        if names:
            by_heading.setdefault(heading, []).extend(names)
    return by_heading


def component(
    name: str, info: FieldInfo, choices: Sequence[tuple[str, str]] = (), prefix: str = ""
) -> Input:
    """The input component for a field's type.

    Args:
        choices: label and value of suggestions; other values can be typed.
        prefix: start of the element id.
    """
    common: dict[str, Any] = {
        "label": title(name, info),
        "info": as_text(info.description),
        "value": info.default,
        "elem_id": f"{prefix}field-{name.replace('_', '-')}",
    }
    allowed = options(info.annotation)
    suggested = choices or [(str(e), str(e)) for e in info.examples or ()]
    if get_origin(info.annotation) is Literal:
        fits_in_row = sum(map(len, allowed)) <= 18  # characters
        return gr.Radio(allowed, **common) if fits_in_row else gr.Dropdown(allowed, **common)
    if info.annotation is bool:
        return gr.Checkbox(**common)
    if info.annotation in (int, float):
        return gr.Number(**common, step=1 if info.annotation is int else 0.01)
    if extra(info).get("many"):
        common["value"] = list(read_names(info.default))
        several = allowed or [choice for choice in suggested if choice[1]]
        return gr.Dropdown(several, multiselect=True, allow_custom_value=not allowed, **common)
    if suggested:
        return gr.Dropdown(list(suggested), allow_custom_value=True, **common)
    lines = int(extra(info).get("lines", 1))
    return gr.Textbox(lines=lines, max_lines=lines, **common)


def as_text(description: str | None) -> str | None:
    """Help text for Gradio, with U+2217 instead of `*`, which Gradio renders as emphasis."""
    return description and description.replace("*", "\u2217")


NUMBERS = {int: re.compile(r"-?[0-9]{1,12}"), float: re.compile(r"-?[0-9]{1,12}([.][0-9]{1,12})?")}


def address_values(request: gr.Request, config: type[BaseModel]) -> dict[str, Any]:
    """The values of form fields in the address: texts, valid choices and numbers."""
    values = dict[str, Any]()
    for name, info in config.model_fields.items():
        text, value_type = query(request, name), info.annotation
        if text and (value_type is str or text in options(value_type)):
            values[name] = text
        elif value_type in NUMBERS and NUMBERS[value_type].fullmatch(text):
            values[name] = value_type(text)
    return values


def value_with_unit(info: FieldInfo | None, value: Any) -> str:
    """A value with the unit of its field, such as "64 segments"; the meaning of 0 if its help has
    one."""
    if isinstance(value, bool):
        return str(value).lower()
    if info is None:
        return str(value)
    meaning = ZERO_MEANING.search(info.description or "") if value == 0 else None
    return meaning[1] if meaning else f"{value} {extra(info).get('unit', '')}".strip()


@dataclass(frozen=True)
class Field:
    """A field of a form: its definition, its input, and the message below."""

    name: str
    info: FieldInfo
    input: Input
    message: gr.HTML

    def input_value(self, values: Mapping[str, Any]) -> Any:
        """The field's value among `values`, or its default, in the form that the input takes."""
        value = values.get(self.name, self.info.default)
        return list(read_names(value)) if extra(self.info).get("many") else value


class ConfigForm:
    """The inputs of one pydantic config, drawn inside a Blocks context.

    Args:
        config: class of the config.
        choices: functions that return the current choices, by field name or by `choices` of the
            field's `json_schema_extra`.
        prefix: start of element ids.
        without: fields that the form omits.
    """

    def __init__(
        self,
        config: type[BaseModel],
        choices: Mapping[str, Callable[[], Choices]] = NO_CHOICES,
        prefix: str = "",
        without: Collection[str] = (),
    ) -> None:
        self.config, self.prefix = config, prefix
        fields = {n: info for n, info in config.model_fields.items() if n not in without}
        sources = {n: str(extra(info).get("choices", n)) for n, info in config.model_fields.items()}
        self.choices = {n: choices[source] for n, source in sources.items() if source in choices}
        self.fields: dict[str, Field] = {}
        self.accordions: dict[str, gr.Accordion] = {}
        for heading, names in sections(config).items():
            basic = [n for n in names if n in fields and not advanced(fields[n])]
            self._section(heading, basic)
        if hidden := [n for n, info in fields.items() if advanced(info)]:
            self.accordions[ADVANCED] = gr.Accordion(
                ADVANCED, open=False, elem_classes="form-advanced"
            )
            with self.accordions[ADVANCED]:
                self._section("", hidden)
        self.fields = {n: self.fields[n] for n in fields}

    def _section(self, heading: str, names: list[str]) -> None:
        if heading and names:
            plain(HTML.heading(heading), elem_classes="form-heading")
        with gr.Row(elem_classes="form-grid"):
            for name in sorted(names, key=lambda name: name != "model"):  # the model is first
                with gr.Column(min_width=200, elem_classes="form-field"):
                    info = self.config.model_fields[name]
                    choices = self.choices[name]() if name in self.choices else ()
                    field_input = component(name, info, choices, self.prefix)
                    message = notice(f"{self.prefix}message-{name.replace('_', '-')}")
                    self.fields[name] = Field(name, info, field_input, message)

    @property
    def inputs(self) -> list[Input]:
        """The inputs of all fields."""
        return [f.input for f in self.fields.values()]

    @property
    def messages(self) -> list[gr.HTML]:
        """The messages of all fields."""
        return [f.message for f in self.fields.values()]

    def values(self, inputs: Iterable[Any]) -> dict[str, Any]:
        """Config values by field name, from the values of `inputs`."""
        texts = (", ".join(map(str, v)) if isinstance(v, list) else v for v in inputs)
        return dict(zip(self.fields, texts, strict=True))

    def show(
        self, values: Mapping[str, Any], only: Collection[str] | None = None
    ) -> dict[Any, Any]:
        """Updates that set all fields (or `only` these) to `values`, or else to their defaults."""
        return {
            field.input: gr.update(value=field.input_value(values))
            for name, field in self.fields.items()
            if only is None or name in only
        }

    def initial_updates(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates of a page that was just opened: current choices, and these `values`.

        All other fields keep their values, which the user may have changed meanwhile."""
        updates = self.show(values, values)
        for name, choices in self.choices.items():
            field = self.fields[name]
            value = {"value": field.input_value(values)} if name in values else {}
            updates[field.input] = gr.update(choices=choices(), **value)
        return updates

    def show_errors(
        self, error: SlimscopeError | None, warnings: Mapping[str, str] = NO_CHOICES
    ) -> dict[Any, Any]:
        """Updates of all messages: errors and warnings appear next to their fields.

        Accordions around fields with a message are opened.

        Args:
            error: an error of one field, with further errors in `others`.
            warnings: warnings by field name.
        """
        errors = {item.field: item for item in (error, *error.others)} if error else {}
        updates: dict[Any, Any] = {}
        for name, field in self.fields.items():
            html = Markup()
            if name in errors:
                html = field_error(errors[name])
            elif warnings.get(name):
                html = HTML.field_warning(warnings[name])
            updates[field.message] = gr.update(value=html, visible=bool(html))
            if html and advanced(field.info):
                updates[self.accordions[ADVANCED]] = gr.update(open=True)
        return updates
