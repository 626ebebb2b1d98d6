"""Form of a pydantic config, which declares type, default, unit and help of each field. Bounds are
left to pydantic, so that a bad value is explained beside its field and nothing typed is lost."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from types import MappingProxyType
from typing import Any, Literal, get_origin

import gradio as gr
from gradio.components import Checkbox, Dropdown, Number, Radio, Textbox
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
field_error = HTML.field_error  # announced by screen readers when it appears
Input = Checkbox | Dropdown | Number | Radio | Textbox
IN_TITLE, SHORT = 3, 24  # values in the title of a fold, and characters of one
ZERO = re.compile(r"\b0: ([^.;]+)")  # in the help of a field: what 0 stands for
UNTOLD = ("auto", "off", "same", "none")
NO_CHOICES: Mapping[str, Any] = MappingProxyType({})
FIRST, METHOD, ADVANCED = "Model and method", "Method", "Advanced"
SECTIONS = {
    "ContextLength": "Text",
    "CalibrationText": "Text",
    "EvaluationText": "Text",
    "JobConfig": "Run",
}


def owner(config: type[BaseModel], name: str) -> type:
    return next(c for c in config.__mro__ if name in get_annotations(c))


def extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def advanced(info: FieldInfo) -> bool:
    return bool(extra(info).get("advanced"))


def title(name: str, info: FieldInfo) -> str:
    unit = extra(info).get("unit")
    text = info.title or name.replace("_", " ").capitalize()
    repeated = unit and str(unit) in text.lower()
    return f"{text} ({unit})" if unit and not repeated else text


def sections(config: type[BaseModel]) -> dict[str, list[str]]:
    """Field names by heading: the kind's own fields first, shared ones last."""
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
    """Component for the field's type; values other than `choices` can be typed."""
    common: dict[str, Any] = {
        "label": title(name, info),
        "info": as_text(info.description),
        "value": info.default,
        "elem_id": f"{prefix}field-{name.replace('_', '-')}",
    }
    listed = options(info.annotation)
    suggested = choices or [(str(e), str(e)) for e in info.examples or ()]
    if get_origin(info.annotation) is Literal:
        # characters of options that fit side by side
        radio = sum(map(len, listed)) <= 18
        return gr.Radio(listed, **common) if radio else gr.Dropdown(listed, **common)
    if info.annotation is bool:
        return gr.Checkbox(**common)
    if info.annotation in (int, float):
        return gr.Number(**common, step=1 if info.annotation is int else 0.01)
    if extra(info).get("many"):
        common["value"] = list(read_names(info.default))
        several = listed or [choice for choice in suggested if choice[1]]
        return gr.Dropdown(several, multiselect=True, allow_custom_value=not listed, **common)
    if suggested:
        return gr.Dropdown(list(suggested), allow_custom_value=True, **common)
    lines = int(extra(info).get("lines", 1))
    return gr.Textbox(lines=lines, max_lines=lines, **common)


def as_text(description: str | None) -> str | None:
    """Help text for Gradio, which takes `*` for emphasis and has no escape: it becomes U+2217."""
    return description and description.replace("*", "\u2217")


NUMBERS = {int: re.compile(r"-?[0-9]{1,12}"), float: re.compile(r"-?[0-9]{1,12}([.][0-9]{1,12})?")}


def address_values(request: gr.Request, config: type[BaseModel]) -> dict[str, Any]:
    """Texts, choices and numbers of a form that the address names."""
    found = dict[str, Any]()
    for name, info in config.model_fields.items():
        value, kind = query(request, name), info.annotation
        if value and (kind is str or value in options(kind)):
            found[name] = value
        elif kind in NUMBERS and NUMBERS[kind].fullmatch(value):
            found[name] = kind(value)
    return found


def spoken(info: FieldInfo | None, value: Any) -> str:
    """A value with the unit of its field; of a 0 that stands for something else what that is."""
    if isinstance(value, bool) or info is None:
        return str(value).lower() if isinstance(value, bool) else str(value)
    meaning = ZERO.search(info.description or "") if value == 0 else None
    return meaning[1] if meaning else f"{value} {extra(info).get('unit', '')}".strip()


def in_short(info: FieldInfo, value: Any) -> str:
    """A value as the title of its fold tells it: "16 segments"; "" where it says little."""
    unit = str(extra(info).get("unit", ""))
    if info.annotation in (int, float) and unit:
        return f"{value} {unit}" if value else ""  # 0 mostly means that something else decides
    text = str(value) if isinstance(value, str) and not isinstance(value, bool) else ""
    return text if 0 < len(text) <= SHORT and text not in UNTOLD else ""


@dataclass(frozen=True)
class Field:
    name: str
    info: FieldInfo
    input: Input
    message: gr.HTML

    def input_value(self, values: Mapping[str, Any]) -> Any:
        value = values.get(self.name, self.info.default)
        return list(read_names(value)) if extra(self.info).get("many") else value


class ConfigForm:
    """Inputs of one pydantic config, drawn inside a Blocks context. `choices`: current choices by
    field name, or by `choices` of its `json_schema_extra`; `prefix` starts element ids; `main`:
    fields not folded away, besides the model (None folds the advanced ones alone); `without`:
    fields not in the form."""

    def __init__(
        self,
        config: type[BaseModel],
        choices: Mapping[str, Callable[[], Choices]] = NO_CHOICES,
        prefix: str = "",
        main: Collection[str] | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.config, self.prefix = config, prefix
        named = {n: str(extra(info).get("choices", n)) for n, info in config.model_fields.items()}
        self.choices = {n: choices[name] for n, name in named.items() if name in choices}
        self.fields: dict[str, Field] = {}
        self.folds: dict[str, gr.Accordion] = {}
        self.fold_of: dict[str, str] = {}  # field -> title of the fold that hides it
        fields, shown = config.model_fields, {"model", *(main or ())}
        names = {n: info for n, info in fields.items() if n not in without}
        by_heading = {h: [n for n in every if n in names] for h, every in sections(config).items()}
        if main is not None:
            own = [n for every in by_heading.values() for n in every if n in shown]
            self._section("", sorted(own, key=lambda n: n != "model"))  # the model leads
        for heading, every in by_heading.items():
            basic = [n for n in every if not advanced(fields[n])]
            if main is None:
                self._section(heading, sorted(basic, key=lambda n: n != "model"))
            else:
                title = METHOD if heading == FIRST else heading
                self._fold(title, [n for n in basic if n not in shown])
        self._fold(ADVANCED, [n for n, info in names.items() if advanced(info)])
        self.fields = {n: self.fields[n] for n in names}

    def _fold(self, title: str, names: list[str]) -> None:
        if not names:
            return
        self.folds[title] = gr.Accordion(title, open=False, elem_classes="form-advanced")
        with self.folds[title]:
            self._section("", names)
        self.fold_of |= dict.fromkeys(names, title)

    def _section(self, heading: str, names: list[str]) -> None:
        if heading and names:
            plain(HTML.heading(heading), elem_classes="form-heading")
        with gr.Row(elem_classes="form-grid"):
            for name in names:
                with gr.Column(min_width=200, elem_classes="form-field"):
                    info = self.config.model_fields[name]
                    choices = self.choices[name]() if name in self.choices else ()
                    made = component(name, info, choices, self.prefix)
                    message = notice(f"{self.prefix}message-{name.replace('_', '-')}")
                    self.fields[name] = Field(name, info, made, message)

    @property
    def inputs(self) -> list[Input]:
        return [f.input for f in self.fields.values()]

    @property
    def messages(self) -> list[gr.HTML]:
        return [f.message for f in self.fields.values()]

    def values(self, given: Iterable[Any]) -> dict[str, Any]:
        texts = (", ".join(map(str, v)) if isinstance(v, list) else v for v in given)
        return dict(zip(self.fields, texts, strict=True))

    def show(
        self, values: Mapping[str, Any], only: Collection[str] | None = None
    ) -> dict[Any, Any]:
        """Updates that show `values`, and defaults for the other fields (or `only` these)."""
        return {
            field.input: gr.update(value=field.input_value(values))
            for name, field in self.fields.items()
            if only is None or name in only
        }

    def arrival(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates of a new page, whose fields hold their defaults: the current choices and these
        `values`. What a person has chosen meanwhile stays."""
        updates = self.show(values, values)
        for name, choices in self.choices.items():
            field = self.fields[name]
            value = {"value": field.input_value(values)} if name in values else {}
            updates[field.input] = gr.update(choices=choices(), **value)
        return updates

    def changed(self, values: Mapping[str, Any]) -> list[str]:
        return [n for n, f in self.fields.items() if values.get(n) != f.info.default]

    def count(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates of the titles of folds: what is set in them, and how much of it was changed."""
        changed = Counter(self.fold_of.get(name) for name in self.changed(values))
        told: dict[str, list[str]] = {fold: [] for fold in self.folds}
        for name, fold in self.fold_of.items():
            if (text := in_short(self.fields[name].info, values.get(name))) and fold != ADVANCED:
                told[fold].append(text)
        for title, number in changed.items():
            if title:
                told[title] = [*told[title][:IN_TITLE], f"{number} changed"]
        return {
            self.folds[fold]: gr.update(label=" · ".join([fold, *texts[: IN_TITLE + 1]]))
            for fold, texts in told.items()
        }

    def show_errors(
        self, error: SlimscopeError | None, warnings: Mapping[str, str] = NO_CHOICES
    ) -> dict[Any, Any]:
        """Updates that show `error` and its `others` beside their fields, opening their folds, or
        `warnings` by field, and clear all other messages."""
        by_field = {each.field: each for each in (error, *error.others)} if error else {}
        updates: dict[Any, Any] = {}
        for field in self.fields.values():
            wrong = by_field.get(field.name)
            risk = warnings.get(field.name)
            html = field_error(wrong) if wrong else HTML.field_warning(risk) if risk else ""
            updates[field.message] = gr.update(value=html, visible=bool(html))
            if html and field.name in self.fold_of:
                updates[self.folds[self.fold_of[field.name]]] = gr.update(open=True)
        return updates
