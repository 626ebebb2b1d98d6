"""From field values to a queued job: the one way in for the form, the CLI and the API."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backend.errors import ConfigError, SlimscopeError
from backend.models import memory
from backend.queue import gate, permissions, service
from backend.queue.actor import Actor
from backend.store.tables import Job
from jobs.fields.models import needed_runs
from jobs.kind import Estimate, JobConfig, Kind, kind_named
from jobs.limits import gpu_count, require_device, require_disk
from jobs.runtime.duration import estimate_seconds

MODEL = "model"  # the field most others are checked against
WORDS = {  # type of a validator's error -> what it says
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "It must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "It must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "It must be true or false"),
    "greater_than_equal": "It must be {ge} or more",
    "less_than_equal": "It must be {le} or less",
    "greater_than": "It must be more than {gt}",
    "less_than": "It must be less than {lt}",
    "finite_number": "It must be a finite number",
    "string_type": "It must be a text",
    "string_too_short": "It must not be empty",
    "string_too_long": "It must have {max_length} characters or fewer",
    "string_pattern_mismatch": "Allowed: {allowed}",
    "missing": "It is missing",
    "literal_error": "It must be {expected}",
    "extra_forbidden": "There is no such setting",
}
Config = TypeVar("Config", bound=JobConfig)
NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


def estimate(kind: Kind, config: JobConfig) -> Estimate:
    """Check a config and estimate its run. Raises SlimscopeError: the run cannot work, or needs
    more memory or disk than there is."""
    if config.device.startswith("cuda"):
        require_device(config.device, gpu_count())
    needs = kind.requirements(config)
    memory.check_memory(needs.memory, memory.memory_available(), needs.title)
    if needs.disk:
        require_disk(needs.disk)
    flops = sum(needs.flops.values())
    seconds, basis = estimate_seconds(
        kind.name, needs.model, flops, needs.timed_seconds, config.device
    )
    needed = sum(needs.memory.values())
    return Estimate(**vars(needs), seconds=seconds, bytes=needed, basis=basis)


def validated(kind: str, values: Mapping[str, Any]) -> JobConfig:
    """The config of a kind made of these values; raises what `parse_config` does."""
    return parse_config(kind_named(kind).config, values)


def parse_config(config: type[Config], values: Mapping[str, Any]) -> Config:
    """The config made of these values; raises `ConfigError` for the first field at fault, with the
    `others`."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        by_field = {
            e.field: e for e in reversed([_config_error(config, e) for e in error.errors()])
        }
        first, *rest = reversed(by_field.values())
        first.others = tuple(rest)
        raise first from error


def _config_error(config: type[JobConfig], error: ErrorDetails) -> ConfigError:
    about_field = error.get("ctx", {}).get("field")  # of settings that contradict each other
    name = str(error["loc"][0]) if error["loc"] else about_field
    info = config.model_fields.get(name or "")
    title = (info.title if info else None) or name or "The config"
    about = (info.description if info else None) or ""
    reason = f"{_in_words(error, about)}.".replace("..", ".")
    return ConfigError(f"{title} was not accepted.", reason, "", name)


def _in_words(error: ErrorDetails, about: str) -> str:
    """A validator's complaint as a person would say it; `about`: what the field is said to take."""
    if words := WORDS.get(error["type"]):
        return words.format(**error.get("ctx", {}), allowed=about.split(". ")[0])
    return str(error["msg"]).removeprefix("Value error, ")


def checked(kind: str, values: Mapping[str, Any]) -> tuple[JobConfig, Estimate]:
    """The config and what it will cost; refuses what cannot work. Raises SlimscopeError: with the
    `others` that are found once the fields at fault have their defaults."""
    try:
        config = validated(kind, values)
        return config, estimate(kind_named(kind), config)
    except SlimscopeError as error:
        error.others = _also_wrong(kind, values, error)
        raise


def _also_wrong(
    kind: str, values: Mapping[str, Any], first: SlimscopeError
) -> tuple[SlimscopeError, ...]:
    """The others of an error, and what hides behind all of them. Nothing does behind a model: the
    other fields would be checked against one that nobody chose."""
    found = [first, *first.others]
    while not {None, MODEL} & {error.field for error in found}:
        faulty = {error.field for error in found}
        mended = {name: value for name, value in values.items() if name not in faulty}
        try:
            estimate(kind_named(kind), validated(kind, mended))
        except SlimscopeError as error:
            if error.field not in faulty:
                found += [error, *error.others]
                continue
        break
    return tuple(error for error in found[1:] if error.field is not None)


def submit(
    kind: str,
    values: Mapping[str, Any],
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
    after: Sequence[int] = (),
    known: Mapping[str, Any] = NOTHING,
) -> Job:
    """Validates, checks, and adds one run to the queue.

    Args:
        after: ids of runs it waits for, besides those whose models or drafters it works on.
        known: beforehand, for its environment.

    Raises:
        ForbiddenError, RateLimitError: the actor may not, or not so often.
        SlimscopeError: the config cannot be carried out; `field` says where it is wrong.
    """
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # before the config is looked into, which takes time
    config, cost = checked(kind, values)
    run = new_run(config, cost, after)
    return service.enqueue(kind, run, actor, name=name, priority=priority, cost=cost, known=known)


def new_run(config: JobConfig, cost: Estimate, after: Sequence[int] = ()) -> service.NewRun:
    """What is queued of a config and its estimate; `after`: as of `submit`."""
    stored = config.model_dump(mode="json")
    plan = cost.plan.model_dump(mode="json") if cost.plan else None
    return service.NewRun(stored, [*needed_runs(stored), *after], plan, cost.sizes)


def command_line(
    kind: str, values: Mapping[str, Any], sweep: Mapping[str, Sequence[str]] = NOTHING
) -> str:
    """The shell line that queues the same runs: only what differs from the defaults."""
    words = ["slimscope", "submit", kind]
    for name, info in kind_named(kind).config.model_fields.items():
        value = values.get(name, info.default)
        if value is None or value == info.default or name in sweep:
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else "--no-" + option.removeprefix("--"))
        else:
            words += [option, str(value)]
    for name, chosen in sweep.items():
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(chosen)  # commas in values are quoted
        words += ["--sweep", f"{name.replace('_', '-')}={line.getvalue()}"]
    return shlex.join(words)
