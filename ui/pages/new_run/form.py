"""The fields of a step, prepared for the template from the config of its kind."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_origin

from pydantic.fields import FieldInfo

from backend.models.layer_names import read_names
from jobs.fields.types import holds_list, options
from ui.pages.new_run.composition import MODEL, ComposedStep, preset_of, recipe_of
from ui.runs.choices import CHOICES
from ui.widgets.config_form import advanced, as_text, extra, sections, title
from ui.widgets.dropdown import Choices

ADVANCED = "Advanced"
MAX_ROW = 20  # characters of the options in a row of radio buttons


class FieldView(NamedTuple):
    """A field on the form.

    Attributes:
        control: macro of the template that draws it.
        text: its value, or its comma-separated values.
        choices: values that it takes or suggests.
        chosen: values of a list.
        free: True if a dropdown also takes other values.
        several: True if it has several values.
        changed: True if it differs from its default.
    """

    name: str
    title: str
    help: str
    control: str
    text: str
    choices: Choices
    chosen: Sequence[str]
    free: bool
    several: bool
    changed: bool


def field_view(step: ComposedStep, name: str) -> FieldView:
    """A field of a step."""
    info = step.spec.config.model_fields[name]
    text = step.several.get(name, step.text(name))
    control, choices = _control(step, name, text)
    return FieldView(
        name,
        title(name, info),
        as_text(info.description) or "",
        "several" if name in step.several else control,
        text,
        choices,
        read_names(text) if control == "many" else (),
        source_of(name, info) in CHOICES,
        name in step.several,
        text != step.default(name),
    )


def source_of(name: str, info: FieldInfo) -> str:
    """The name of the choices of a field."""
    return str(extra(info).get("choices", name))


def _control(step: ComposedStep, name: str, text: str) -> tuple[str, Choices]:
    """The control of a field, and its choices."""
    info = step.spec.config.model_fields[name]
    allowed = options(info.annotation)
    source = CHOICES.get(source_of(name, info))
    choices = source() if source else [(value, value) for value in allowed]
    values = [value for _, value in choices]
    if get_origin(info.annotation) is Literal:
        control = "radio" if sum(map(len, allowed)) <= MAX_ROW else "select"
        return control, choices if text in values else [*choices, (text, text)]
    if info.annotation is bool:
        return "check", []
    if holds_list(info):
        extra_values = [value for value in read_names(text) if value not in values]
        return "many", [(label, x) for label, x in choices if x] + [(x, x) for x in extra_values]
    if source:
        usual = step.default(name)
        choices = choices if usual in values else [(usual or "–", usual), *choices]
        return ("select" if text in (usual, *values) else "other"), choices
    if extra(info).get("lines"):
        return "area", []
    examples = [(str(value), str(value)) for value in info.examples or ()]
    return ("number" if info.annotation in (int, float) else "text"), examples


def key_fields(step: ComposedStep) -> list[FieldView]:
    """The key fields and all fields that are set neither by the recipe nor by the preset, without
    the model."""
    kind = step.spec
    explained = {MODEL, *kind.main_fields}
    explained |= kind.recipes.get(recipe_of(step), {}).keys()
    explained |= kind.presets.get(preset_of(step), {}).keys()
    given = [name for name in (*step.values, *step.several) if name not in explained]
    fields = step.spec.config.model_fields
    return [field_view(step, name) for name in (*kind.main_fields, *given) if name in fields]


def other_fields(step: ComposedStep, above: Sequence[FieldView]) -> dict[str, list[FieldView]]:
    """All other fields by heading, advanced ones last."""
    fields = step.spec.config.model_fields
    hidden = {MODEL, *(view.name for view in above)}
    groups: dict[str, list[FieldView]] = {}
    for heading, names in sections(step.spec.config).items():
        for name in [name for name in names if name not in hidden]:
            group = ADVANCED if advanced(fields[name]) else heading
            groups.setdefault(group, []).append(field_view(step, name))
    return {name: groups[name] for name in sorted(groups, key=lambda name: name == ADVANCED)}
