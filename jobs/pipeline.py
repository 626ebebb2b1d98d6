"""A pipeline: several runs, each on the output of the previous one.

    name: small and fast
    model: smollm2-135m
    steps:
      - sds: {pattern: "2:4", preset: quick look}
      - dlqat: {bits: 4}
      - amphista: {architecture: eagle}
      - benchmark: {}

A list of values, such as `bits: [3, 4]`, makes one run per value; runs of the later steps follow
each of them.

The steps are ordinary runs in the queue. A step waits until the previous one has succeeded; if that
fails, later steps wait until it is resumed. A step works on the model saved by the last step that
saves one. A benchmark includes the drafters trained for its model before.

With `alone: true`, every later step that saves something runs again on the first model, followed by
the last benchmark step, in order to compare the chain with each of its steps. These runs come last
and have the tag "alone".

All steps are validated before any is queued. In validation, the base model replaces a model that is
not saved yet, since it has the same shapes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any, ClassVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.errors import ConfigError, SlimscopeError
from backend.queue import labels, permissions, service
from backend.queue.actor import Actor
from backend.store.session import one_transaction
from backend.store.tables import Job
from jobs import sweep as sweeps
from jobs.fields.types import DEFAULT_MODEL, holds_list
from jobs.kind import get_kind
from jobs.submit import EMPTY, submit, values_text

MAX_STEPS, MAX_CHARACTERS = 12, 20_000
ALONE = "alone"  # tag of comparison runs
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
    """YAML loader that reads every value as text, as on the command line: YAML would read the
    pattern 2:4 as 124, and 1e-3 as text. Aliases are rejected, since a few lines can expand to a
    billion values."""

    yaml_implicit_resolvers: ClassVar = {
        letter: [pair for pair in pairs if pair[0] == "tag:yaml.org,2002:null"]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="write the value instead of an alias (*)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # a tag such as !!map [1] calls this without a mapping
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode))
        if duplicates := [name for name, count in names.items() if count > 1]:
            problem = f"{duplicates[0]} appears more than once"  # YAML would use the last
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class PipelineFile(BaseModel):
    """Schema of a pipeline file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=120)
    model: str = Field(min_length=1, max_length=300)
    alone: bool = False
    steps: list[dict[str, dict[str, Any] | None]] = Field(min_length=1, max_length=MAX_STEPS)


@dataclass(frozen=True)
class Step:
    """One planned run.

    Attributes:
        kind: kind of the run.
        preset: preset that the settings are based on.
        settings: settings in the file with one value.
        sweep: settings with several values; each combination is a run.
        from_start: True if it works on the first model of the pipeline.
        alone: True for a comparison run that is not part of the chain.
    """

    kind: str
    preset: str
    settings: dict[str, Any]
    sweep: sweeps.Sweep = field(default_factory=dict)
    from_start: bool = False
    alone: bool = False

    @property
    def saves(self) -> str:
        """Artifact that later steps can use."""
        return get_kind(self.kind).saves

    def values_for(self, model: str, drafters: Sequence[str]) -> dict[str, Any]:
        """Return all config values for a model and the drafters trained for it."""
        values = {MODEL: model, **get_kind(self.kind).preset(self.preset), **self.settings}
        if drafters and DRAFTERS in get_kind(self.kind).config.model_fields:
            values.setdefault(DRAFTERS, ", ".join(drafters))
        return values


@dataclass(frozen=True)
class Pipeline:
    """A pipeline before it is queued."""

    name: str
    model: str
    steps: list[Step]


def read(text: str) -> Pipeline:
    """Parse a YAML file. Raises `ConfigError` with the location of the error."""
    if len(text) > MAX_CHARACTERS:
        raise _invalid_file(f"It has more than {MAX_CHARACTERS:,} characters.")
    try:
        document = yaml.load(text, _Texts)
    except RecursionError as error:
        raise _invalid_file("It is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: !!int of text
        raise _invalid_file(f"It is not valid YAML: {error}."[:300]) from error
    return of_document(document)


def of_document(document: Any) -> Pipeline:
    """Return the pipeline of a parsed file. Raises `ConfigError` with the location of the error."""
    if not isinstance(document, dict):
        raise _invalid_file("It needs the keys model and steps.")
    try:
        file = PipelineFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "the file"
        raise _invalid_file(f"{location}: {first['msg']}.") from error
    steps = [read_step(n, x) for n, x in enumerate(file.steps, 1)]
    comparison_steps: list[Step] = []
    if file.alone:  # repeat steps after the first saved model on the first model, with a benchmark
        benchmark = next((step for step in reversed(steps) if step.kind == BENCHMARK), None)
        saves = [step.saves for step in steps]
        for step in steps[saves.index(MODEL) + 1 :] if MODEL in saves else []:
            if step.saves:
                comparison_steps.append(replace(step, from_start=True, alone=True))
                comparison_steps += [replace(benchmark, alone=True)] if benchmark else []
    if comparison_steps and any(step.sweep for step in steps):
        raise _invalid_file("It has alone: true and lists of values.", "Remove one of them.")
    return Pipeline(file.name, file.model, [*steps, *comparison_steps])


def read_step(number: int, item: Mapping[str, Mapping[str, Any] | None]) -> Step:
    """Return a step of a file. Raises `SlimscopeError` for an unknown kind or preset, or too many
    values."""
    if len(item) != 1:
        raise _invalid_file(f"Step {number} has {len(item)} kinds.", "Give one kind: - sds: {...}")
    ((name, settings),) = item.items()
    values = dict(settings or {})
    preset = str(values.pop(PRESET, None) or "")
    try:
        get_kind(name).preset(preset)
        sweep = sweeps.read(name, _listed(name, values))
    except SlimscopeError as error:
        raise _with_step(number, name, error) from error
    single = {field: value for field, value in values.items() if field not in sweep}
    return Step(name, preset, single, sweep)


def _listed(kind: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields with several values, and these as text. A field that holds a list itself has
    several values if it is given a list of lists."""
    fields = get_kind(kind).config.model_fields
    for name, value in values.items():
        if not isinstance(value, list) or name not in fields:
            continue
        is_list = [isinstance(item, list) for item in value]
        if all(is_list) or not holds_list(fields[name]):
            texts = (", ".join(map(str, x)) if isinstance(x, list) else str(x) for x in value)
            yield name, values_text([*texts])


def _invalid_file(why: str, do: str = "See the pipelines in the documentation.") -> ConfigError:
    return ConfigError("The pipeline cannot be read.", why, do, "pipeline")


def _with_step(number: int, kind: str, error: SlimscopeError) -> SlimscopeError:
    """Add the step to an error."""
    why = f"{error.what} {error.why}".strip()
    return type(error)(f"Step {number} ({kind}) cannot run.", why, error.do, "pipeline")


def plan(pipeline: Pipeline) -> list[sweeps.SweepPlan]:
    """Validate and estimate every step. Raises `SlimscopeError` if a step is invalid or there are
    too many runs."""
    plans, branches, runs = list[sweeps.SweepPlan](), 1, 0
    for number, step in enumerate(pipeline.steps, 1):
        try:
            plans.append(plan_step(step, pipeline.model))
            branches *= len(plans[-1].configs)
            runs += branches
            require_few(runs, [*step.sweep])
        except SlimscopeError as error:
            raise _with_step(number, step.kind, error) from error
    return plans


def plan_step(step: Step, model: str) -> sweeps.SweepPlan:
    """Validate and estimate the runs of a step, as if they worked on `model`."""
    if MODEL not in get_kind(step.kind).config.model_fields:
        raise ConfigError("This kind does not work on a model.", "", "Remove the step.")
    return sweeps.plan(step.kind, step.values_for(model, ()), step.sweep)


def require_few(runs: int, swept: Sequence[str]) -> None:
    """Raise `ConfigError` if a pipeline has too many runs up to a step with these swept fields."""
    if runs > sweeps.MAX_RUNS:
        what, why = "There are too many runs.", f"The maximum is {sweeps.MAX_RUNS}."
        raise ConfigError(what, why, "Give fewer values.", swept[-1] if swept else None)


@dataclass(frozen=True)
class Branch:
    """Runs in sequence, while they are queued.

    Attributes:
        model: model that the next step works on.
        drafters: drafters that were trained for it.
        last: id of the newest run; empty before the first.
    """

    model: str
    drafters: tuple[str, ...] = ()
    last: tuple[int, ...] = ()

    def followed_by(self, job: Job, saves: str) -> "Branch":
        """Return the branch after a run that saves this artifact."""
        if saves == MODEL:
            return Branch(job.run, (), (job.id,))
        drafters = (*self.drafters, job.run) if saves else self.drafters
        return Branch(self.model, drafters, (job.id,))


def queue(
    pipeline: Pipeline, actor: Actor, *, priority: int = 0, environment: Mapping[str, Any] = EMPTY
) -> list[Job]:
    """Validate all steps, then queue them in one transaction.

    Args:
        environment: additional environment of the runs of the last step.

    Raises:
        ForbiddenError, RateLimitError: the actor lacks permission or submits too often.
        SlimscopeError: a step is invalid.
    """
    permissions.require_host(actor, "queue a pipeline")
    plan(pipeline)  # before the transaction, so that models are already inspected
    jobs: list[Job] = []
    branches = [Branch(pipeline.model)]
    with one_transaction():
        for step in pipeline.steps:
            if step.from_start:
                branches = [Branch(pipeline.model, (), branches[0].last)]
            added = environment if step is pipeline.steps[-1] else EMPTY
            later = []
            for branch, values in product(branches, sweeps.combinations(step.sweep)):
                job = submit(
                    step.kind,
                    {**step.values_for(branch.model, branch.drafters), **values},
                    actor,
                    name=pipeline.name,
                    priority=priority,
                    after=branch.last,
                    environment=added,
                )
                if step.alone:
                    labels.edit([job.run], actor, add=[ALONE])
                jobs.append(job)
                later.append(branch.followed_by(job, step.saves))
            branches = later
    service.wake_supervisor()  # earlier wake-ups did not see the uncommitted runs
    return jobs


def preset(name: str, model: str = "") -> str:
    """Return the YAML text of a preset, for a model or the default model. Raises `ConfigError` for
    an unknown name."""
    if name not in PRESETS:
        names = " or ".join(map(repr, PRESETS))  # the names contain commas
        raise ConfigError(f"There is no pipeline {name[:40]!r}.", "", f"Choose: {names}.", "preset")
    return PRESETS[name].format(model=model or DEFAULT_MODEL)
