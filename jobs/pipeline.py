"""A pipeline: several runs, each on what the one before has saved.

    name: small and fast
    model: smollm2-135m
    steps:
      - sds: {pattern: "2:4", preset: quick look}
      - dlqat: {bits: 4}
      - amphista: {architecture: eagle}
      - benchmark: {}

The steps are ordinary runs in the queue. A step waits until the one before has succeeded; if that
fails, the rest waits until it is resumed. The model of a step is what the last step that
saves a model has saved; the drafters of a benchmark are those trained for it before.

With `alone: true` every step that has worked on a saved model and saves something runs once more,
on the model the pipeline begins with, and each is timed as the last benchmark step says: what the
chain gives is compared with each of its steps. These runs come last and have the tag "alone".

All steps are validated before any is queued. A run that is not there yet stands for its base then,
whose shapes it will have.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import ConfigError, SlimscopeError
from backend.queue import labels, permissions, service
from backend.queue.actor import Actor
from backend.store.session import one_transaction
from backend.store.tables import Job
from jobs.fields.types import DEFAULT_MODEL
from jobs.kind import Estimate, kind_named
from jobs.submit import NOTHING, checked, submit

MOST_STEPS, LETTERS = 12, 20_000
ALONE = "alone"  # the tag of runs the chain is compared with
MODEL, DRAFTERS, PRESET, BENCHMARK = "model", "drafters", "preset", "benchmark"
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "prune, quantize, draft": """\
name: prune, quantize, draft
model: {model}
steps:
  - benchmark: {{lookup: false}}
  - sds: {{preset: quick look, pattern: "2:4"}}
  - benchmark: {{lookup: false}}
  - dlqat: {{bits: 4, keep_zeros: true}}
  - amphista: {{minutes: 10}}
  - benchmark: {{}}
""",
        "quantize, draft": """\
name: quantize, draft
model: {model}
steps:
  - benchmark: {{lookup: false}}
  - dlqat: {{bits: 4}}
  - amphista: {{minutes: 10}}
  - benchmark: {{}}
""",
        "prune, quantize": """\
name: prune, quantize
model: {model}
steps:
  - sds: {{preset: quick look, pattern: "50%"}}
  - dlqat: {{bits: 4, keep_zeros: true}}
  - evaluation: {{}}
""",
    }
)


class _Texts(yaml.SafeLoader):
    """Every value is a text, as on the command line: YAML would read a pattern 2:4 as 124, and 1e-3
    as no number. Nothing is repeated by an alias: a few lines of them can mean a billion values."""

    yaml_implicit_resolvers: ClassVar = {
        letter: [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:null"]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="write it out instead of an alias (*)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # else a tag: !!map [1]
        names = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, times in names.items() if times > 1]:
            problem = f"{twice[0]} stands here more than once"  # the last would win
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class PipelineFile(BaseModel):
    """What a file says."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=80)
    model: str = Field(min_length=1, max_length=300)
    alone: bool = False
    steps: list[dict[str, dict[str, Any] | None]] = Field(min_length=1, max_length=MOST_STEPS)


@dataclass(frozen=True)
class Step:
    """One run to be."""

    kind: str
    preset: str  # whose values it begins with
    given: dict[str, Any]  # those that were written
    anew: bool = False  # whether it works on the model the pipeline begins with
    alone: bool = False  # whether it is no step of the chain

    @property
    def saves(self) -> str:
        """What it leaves for later steps."""
        return kind_named(self.kind).saves

    def on(self, model: str, drafters: Sequence[str]) -> dict[str, Any]:
        """All values, on a model and with the drafters that were trained for it."""
        values = {MODEL: model, **kind_named(self.kind).preset(self.preset), **self.given}
        if drafters and DRAFTERS in kind_named(self.kind).config.model_fields:
            values.setdefault(DRAFTERS, ", ".join(drafters))
        return values


@dataclass(frozen=True)
class Pipeline:
    """Steps that are about to be queued."""

    name: str
    model: str
    steps: list[Step]


def read(text: str) -> Pipeline:
    """The pipeline a YAML file describes; raises `ConfigError`, which says where it is none."""
    if len(text) > LETTERS:
        raise _refused(f"It has more than {LETTERS:,} letters.")
    try:
        loaded = yaml.load(text, _Texts)
    except RecursionError as error:
        raise _refused("It is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: !!int of what is no number
        raise _refused(f"It is no YAML: {error}."[:300]) from error
    if not isinstance(loaded, dict):
        raise _refused("It needs lines that begin with model: and steps:.")
    try:
        file = PipelineFile.model_validate(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise _refused(f"{place}: {first['msg']}.") from error
    steps = [_step(n, x) for n, x in enumerate(file.steps, 1)]
    alone: list[Step] = []
    if file.alone:  # what works on a saved model and saves something, on the first model, timed
        timed = next((step for step in reversed(steps) if step.kind == BENCHMARK), None)
        saves = [step.saves for step in steps]
        for step in steps[saves.index(MODEL) + 1 :] if MODEL in saves else []:
            if step.saves:
                alone.append(replace(step, anew=True, alone=True))
                alone += [replace(timed, alone=True)] if timed else []
    return Pipeline(file.name, file.model, [*steps, *alone])


def _step(number: int, item: Mapping[str, Mapping[str, Any] | None]) -> Step:
    if len(item) != 1:
        raise _refused(f"Step {number} has {len(item)} kinds.", "Write one: - sds: {...}")
    ((name, given),) = item.items()
    values = dict(given or {})
    preset = str(values.pop(PRESET, None) or "")
    try:
        kind_named(name).preset(preset)
    except SlimscopeError as error:
        raise _at(number, name, error) from error
    return Step(name, preset, values)


def _refused(why: str, do: str = "See the pipelines in the documentation.") -> ConfigError:
    return ConfigError("The pipeline cannot be read.", why, do, "pipeline")


def _at(number: int, kind: str, error: SlimscopeError) -> SlimscopeError:
    """The error, with the step it is about."""
    why = f"{error.what} {error.why}".strip()
    return type(error)(f"Step {number}, {kind}, cannot be run.", why, error.do, "pipeline")


def plan(pipeline: Pipeline) -> list[Estimate]:
    """What every step will cost; raises `SlimscopeError` if one cannot be carried out."""
    estimates = []
    for number, step in enumerate(pipeline.steps, 1):
        if MODEL not in kind_named(step.kind).config.model_fields:
            raise _at(number, step.kind, ConfigError("It works on no model.", "", "Leave it out."))
        try:
            estimates.append(checked(step.kind, step.on(pipeline.model, ()))[1])
        except SlimscopeError as error:
            raise _at(number, step.kind, error) from error
    return estimates


def queue(
    pipeline: Pipeline, actor: Actor, *, priority: int = 0, known: Mapping[str, Any] = NOTHING
) -> list[Job]:
    """Validate all steps, then add them to the queue in one transaction, all or none. `known`: for
    the environment of the last one. Raises ForbiddenError, RateLimitError: the actor may not, or
    not so often; SlimscopeError: one of them cannot be carried out."""
    permissions.require_host(actor, "queue a pipeline")
    plan(pipeline)  # before the transaction, which then finds models examined
    made: list[Job] = []
    model, drafters = pipeline.model, list[str]()
    with one_transaction():
        for step in pipeline.steps:
            if step.anew:
                model, drafters = pipeline.model, []
            job = submit(
                step.kind,
                step.on(model, drafters),
                actor,
                name=pipeline.name,
                priority=priority,
                after=[before.id for before in made[-1:]],
                known=known if step is pipeline.steps[-1] else NOTHING,
            )
            made.append(job)
            if step.alone:
                labels.edit([job.run], actor, add=[ALONE])
            if step.saves == MODEL:
                model, drafters = job.run, []
            elif step.saves:
                drafters = [*drafters, job.run]
    service.wake_supervisor()  # who was woken before saw nothing yet
    return made


def preset(name: str, model: str = "") -> str:
    """The text of a preset, for a model or the default one; `ConfigError` if there is none."""
    if name not in PRESETS:
        known = " or ".join(map(repr, PRESETS))  # their names have commas
        raise ConfigError(f"There is no pipeline {name[:40]!r}.", "", f"Choose: {known}.", "preset")
    return PRESETS[name].format(model=model or DEFAULT_MODEL)
