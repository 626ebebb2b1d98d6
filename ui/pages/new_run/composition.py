"""The contents of the form: a run, a sweep or a pipeline, as sent by the browser and as encoded in
a URL.

    new-run?kind=dlqat&model=toy&bits=3&bits=4
    new-run?model=toy&step={"sds":{"pattern":"2:4"}}&step={"dlqat":{"bits":[3,4]}}

An address names every field of a config. A field given several times has several values. JSON
objects and lists are accepted where the config takes text: {"0.*":"int8"} is 0.*=int8.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.errors import SlimscopeError
from jobs import pipeline
from jobs.fields.types import holds_list
from jobs.kind import Kind, get_kind, kinds
from jobs.submit import values_text
from jobs.sweep import RANGE
from ui.runs.results import find_job

MODEL, STEP = pipeline.MODEL, "step"
MAX_ADDRESS = 60_000  # characters; an address names the format of every layer
MAX_PARAMETERS = 200
MAX_NAME = 120  # characters
MAX_SHOWN = 80  # characters of a value in a message


class ComposedStep(BaseModel):
    """One step of a composition.

    Attributes:
        kind: name of its kind.
        values: text of every field that differs from its default.
        several: comma-separated values of the fields with several values.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=40)
    values: dict[str, str] = {}
    several: dict[str, str] = {}

    @property
    def spec(self) -> Kind:
        """The kind of the step."""
        return get_kind(self.kind)

    def text(self, name: str) -> str:
        """The value of a field, or its default."""
        return self.values.get(name, self.default(name))

    def default(self, name: str) -> str:
        """The default of a field as text."""
        return text_of(self.spec.config.model_fields[name].default)

    def set(self, values: Mapping[str, Any]) -> None:
        """Give fields one value each."""
        for name, value in values.items():
            self.several.pop(name, None)
            self.values[name] = text_of(value)
        self.drop_defaults()

    def drop_defaults(self) -> None:
        """Remove values that equal the defaults."""
        fields = self.spec.config.model_fields
        for name in [n for n, text in self.values.items() if n in fields]:
            if name in self.several or self.values[name] == self.default(name):
                del self.values[name]

    def settings(self) -> dict[str, Any]:
        """The values as in a pipeline file: a list for several values, without the model, which the
        file names once."""
        lists = {name: _listed(self.spec, name, text) for name, text in self.several.items()}
        return {**{n: text for n, text in self.values.items() if n != MODEL}, **lists}


class Composition(BaseModel):
    """All steps of the form. `at`: the shown step."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=MAX_NAME)
    steps: list[ComposedStep] = Field(min_length=1, max_length=pipeline.MAX_STEPS)
    at: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check_steps(self) -> "Composition":
        if self.at >= len(self.steps):
            raise ValueError("there is no such step")
        for step in self.steps:
            step.drop_defaults()
        return self

    @property
    def shown(self) -> ComposedStep:
        """The step that is shown."""
        return self.steps[self.at]

    @property
    def model(self) -> str:
        """The model of the first step; empty for a kind without one."""
        first = self.steps[0]
        return first.text(MODEL) if MODEL in first.spec.config.model_fields else ""

    def document(self) -> dict[str, Any]:
        """The composition as a pipeline file."""
        steps = [{step.kind: step.settings()} for step in self.steps]
        name = {"name": self.name} if self.name else {}
        return {**name, "model": self.model, "steps": steps}

    def address(self) -> str:
        """The query string of the composition."""
        pairs: list[tuple[str, str]]
        if len(self.steps) > 1:
            document = self.document()
            steps = [json.dumps(x, separators=(",", ":")) for x in document.pop("steps")]
            pairs = [*document.items(), *((STEP, text) for text in steps)]
        else:
            (step,) = self.steps
            lists = {n: _items(text) for n, text in step.several.items()}
            given = {**{n: [text] for n, text in step.values.items()}, **lists}
            pairs = [("kind", step.kind), *((n, text) for n in given for text in given[n])]
            pairs += [("name", self.name)] if self.name else []
        return urlencode(pairs)


def text_of(value: Any) -> str:
    """A config value as text of the form. Raises ValueError for nested lists and objects."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_scalar(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_scalar, value))
    return "" if value is None else str(value)


def _scalar(value: Any) -> str:
    if isinstance(value, list | Mapping):
        raise ValueError("Lists and objects cannot be nested.")
    return text_of(value)


def _items(text: str) -> list[str]:
    """Split comma-separated values, which may be quoted; unreadable text is one value."""
    try:
        return [item.strip() for item in next(csv.reader([text], skipinitialspace=True), [])]
    except csv.Error:
        return [text]


def _listed(kind: Kind, name: str, text: str) -> list[Any]:
    items = _items(text)
    is_list = name in kind.config.model_fields and holds_list(kind.config.model_fields[name])
    return [_items(item) for item in items] if is_list else items


# addresses ----------------------------------------------------------------------------------------


Unfilled = tuple[str, str]  # unusable part of an address, and the reason


def read_address(query: str) -> tuple[Composition, list[Unfilled]]:
    """The composition in a URL, and the parts of the URL that could not be used."""
    reader = _Reader()
    return reader.composition(query), reader.unfilled


class _Reader:
    """Reads one URL and collects the parts that it cannot use."""

    def __init__(self) -> None:
        self.unfilled: list[Unfilled] = []

    def composition(self, query: str) -> Composition:
        given = self._parameters(query)
        run, kind = given.pop("from", [""])[-1], given.pop("kind", [""])[-1]
        name, model = given.pop("name", [""])[-1], given.pop(MODEL, [])
        steps = [step for text in given.pop(STEP, []) if (step := self._step(text))]
        if run:
            steps, name = self._of_run(run) or steps, name or getattr(find_job(run), "name", "")
        if not steps:
            steps = [ComposedStep(kind=self._kind(kind) or next(iter(kinds())))]
        if len(steps) > pipeline.MAX_STEPS:
            self._refuse("step", f"A pipeline has at most {pipeline.MAX_STEPS} steps.")
        self._fill(steps[0], {**({MODEL: model} if model else {}), **given})
        composition = Composition(name=name[:MAX_NAME], steps=steps[: pipeline.MAX_STEPS])
        for step in composition.steps[1:]:
            if step.values.pop(MODEL, composition.model) != composition.model:
                self._refuse(MODEL, "Later steps work on the model that the step before saves.")
        return composition

    def _parameters(self, query: str) -> dict[str, list[Any]]:
        """Values by parameter, with JSON decoded."""
        by_name: dict[str, list[Any]] = {}
        if len(query) > MAX_ADDRESS:
            self._refuse("The address", f"It has more than {MAX_ADDRESS:,} characters.")
            return by_name
        try:
            pairs = parse_qsl(query.lstrip("?"), True, max_num_fields=MAX_PARAMETERS)
        except ValueError:
            self._refuse("The address", f"It has more than {MAX_PARAMETERS} parameters.")
            return by_name
        for name, text in pairs:
            if not name.startswith("__"):  # parameters of Gradio
                by_name.setdefault(name.replace("-", "_"), []).append(text)
        return by_name

    def _kind(self, name: str) -> str:
        if name and name not in kinds():
            self._refuse(f"kind={name}", "There is no such kind of run.")
        return name if name in kinds() else ""

    def _of_run(self, run: str) -> list[ComposedStep]:
        """The config of a run as a step."""
        job = find_job(run)
        if job is None:
            self._refuse(f"from={run}", "There is no such run.")
        if job is None or not self._kind(job.kind):
            return []
        step = ComposedStep(kind=job.kind)
        self._fill(step, {name: [value] for name, value in job.config.items()})
        return [step]

    def _step(self, text: str) -> ComposedStep | None:
        """A step such as {"sds": {"pattern": "2:4"}}."""
        try:
            return self.of_step(pipeline.read_step(1, json.loads(text)))
        except (SlimscopeError, ValueError, TypeError, AttributeError, RecursionError):
            self._refuse(f"step={text}", 'It is not a step such as {"sds":{"pattern":"2:4"}}.')
            return None

    def of_step(self, read: pipeline.Step) -> ComposedStep:
        """The step of a pipeline file."""
        step = ComposedStep(kind=read.kind)
        step.set(step.spec.preset(read.preset))
        self._fill(step, {**{name: [value] for name, value in read.settings.items()}, **read.sweep})
        return step

    def _fill(self, step: ComposedStep, given: Mapping[str, Sequence[Any]]) -> None:
        """Set fields of a step to the values in the URL."""
        fields = step.spec.config.model_fields
        for name, values in given.items():
            if name not in fields:
                self._refuse(name, f"{step.spec.title} has no such field.")
                continue
            try:
                texts = [text_of(_parsed(value)) for value in values]
            except ValueError as error:
                self._refuse(name, str(error))
                continue
            is_range = fields[name].annotation is int and RANGE.fullmatch(texts[-1])
            if len(texts) > 1 or is_range:
                step.several[name] = values_text(texts)
            else:
                step.values[name] = texts[-1] if texts else ""
        step.drop_defaults()

    def _refuse(self, part: str, why: str) -> None:
        self.unfilled.append((part[:MAX_SHOWN], why))


def _parsed(value: Any) -> Any:
    """The value of JSON text, or the text itself. Raises ValueError for an incomplete object."""
    if not isinstance(value, str) or not value.startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if value.startswith("{"):
            raise ValueError("Its JSON cannot be read.") from error
        return value


# recipes, presets and steps -----------------------------------------------------------------------

Options = Mapping[str, Mapping[str, Any]]  # name -> field values


def fields_of(options: Options) -> list[str]:
    """The fields that recipes or presets set."""
    return [*dict.fromkeys(field for values in options.values() for field in values)]


def recipe_of(step: ComposedStep) -> str:
    """The recipe that the values of a step match; empty if there is none. The field that most
    recipes set is decisive; among recipes with its value, the one with the most matching fields
    wins.

    The field that most recipes set decides; of the recipes with its value, the one with the most
    fields in common."""
    recipes = step.spec.recipes
    counts = Counter(field for values in recipes.values() for field in values)
    usual = {field: step.default(field) for field, _ in counts.most_common(1)}
    fitting = [name for name, x in recipes.items() if matches(step, {**usual, **x})]
    return max(fitting, key=lambda name: len(recipes[name]), default="")


def preset_of(step: ComposedStep) -> str:
    """The preset that the values of a step match; empty if there is none."""
    presets = step.spec.presets
    usual = {field: step.default(field) for field in fields_of(presets)}
    return next((name for name, x in presets.items() if matches(step, {**usual, **x})), "")


def matches(step: ComposedStep, values: Mapping[str, Any]) -> bool:
    """Return True if the step has exactly these values."""
    is_single = step.several.keys().isdisjoint(values)
    return is_single and all(step.text(name) == text_of(x) for name, x in values.items())


def label_of(step: ComposedStep) -> str:
    """The name of a step: its recipe, or its kind if there are no recipes."""
    kind = step.spec
    return recipe_of(step) or f"{kind.title}{', own settings' if kind.recipes else ''}"


def with_option(step: ComposedStep, options: Options, name: str) -> ComposedStep:
    """The step with a recipe or preset. Fields of other recipes or presets are reset to their
    defaults."""
    changed = step.model_copy(deep=True)
    usual = {field: changed.default(field) for field in fields_of(options)}
    changed.set({**usual, **options.get(name, {})})
    return changed


def change(composition: Composition, action: str, value: str) -> Composition:
    """The composition after a click on a button. Raises `SlimscopeError` for an unknown value."""
    steps, at = [step.model_copy(deep=True) for step in composition.steps], composition.at
    shown = steps[at]
    model = {MODEL: composition.model} if composition.model else {}
    owner = steps[0] if value == MODEL else shown
    fields = owner.spec.config.model_fields
    match action:
        case "step":
            at = min(int(value) if value.isdecimal() else 0, len(steps) - 1)
        case "kind":
            steps[at] = _of_kind(value, model if at == 0 else {})
        case "add" if len(steps) < pipeline.MAX_STEPS:
            steps, at = [*steps, _of_kind(value, {})], len(steps)
        case "remove" if len(steps) > 1:
            steps.pop(at)
            at = max(at - 1, 0)
            steps[0].set(model)
        case "recipe":
            steps[at] = with_option(shown, shown.spec.recipes, value)
        case "preset":
            steps[at] = with_option(shown, shown.spec.presets, value)
        case "several" if value in fields:
            owner.several[value] = values_text([owner.values.pop(value, owner.default(value))])
        case "single" if value in owner.several:
            owner.set({value: next(iter(_items(owner.several[value])), "")})
        case "reset" if value in fields:
            owner.set({value: owner.default(value)})
        case "pipeline":
            text = pipeline.preset(value, composition.model)
            return of_pipeline(pipeline.read(text))
    return Composition(name=composition.name, steps=steps, at=at)


def _of_kind(name: str, values: Mapping[str, str]) -> ComposedStep:
    step = ComposedStep(kind=name)
    step.set({n: text for n, text in values.items() if n in step.spec.config.model_fields})
    return step


def of_pipeline(read: pipeline.Pipeline) -> Composition:
    """The composition of a pipeline file."""
    steps = [_Reader().of_step(step) for step in read.steps]
    steps[0].set({MODEL: read.model})
    return Composition(name=read.name, steps=steps)
