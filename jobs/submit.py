"""Validation, estimate and submission of a run from field values, for form, CLI and API."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backend.errors import ConfigError, SlimscopeError
from backend.queue import gate, permissions, service
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.states import LIVE
from backend.store.tables import Job
from jobs import estimates
from jobs.fields.models import needed_runs
from jobs.kind import Estimate, JobConfig, Kind, get_kind
from jobs.limits import require_disk, run_memory

MODEL = "model"  # field that most others are validated against
MESSAGES = {  # type of a pydantic error -> message
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "It must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "It must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "It must be true or false"),
    "greater_than_equal": "It must be {ge} or more",
    "less_than_equal": "It must be {le} or less",
    "greater_than": "It must be more than {gt}",
    "less_than": "It must be less than {lt}",
    "finite_number": "It must be a finite number",
    "string_type": "It must be text",
    "string_too_short": "It must not be empty",
    "string_too_long": "It must have {max_length} characters or fewer",
    "string_pattern_mismatch": "Allowed: {allowed}",
    "missing": "It is required",
    "literal_error": "It must be {expected}",
    "extra_forbidden": "There is no such setting",
}
Config = TypeVar("Config", bound=JobConfig)
EMPTY: Mapping[str, Sequence[str]] = MappingProxyType({})


def estimate(kind: Kind, config: JobConfig) -> Estimate:
    """Check a config and estimate its run. Raises `SlimscopeError` if the config is invalid or
    needs more memory or disk space than available."""
    run_memory(config.device)
    requirements = kind.requirements(config)
    device = requirements.device
    if not device.is_host and queries.jobs([*LIVE]):
        device = device.when_idle
    device.require(requirements.memory, requirements.title)
    if requirements.disk:
        require_disk(requirements.disk)
    duration = estimates.estimate(kind.name, config.model_dump(), requirements.work)
    return Estimate(**vars(requirements), **vars(duration), bytes=sum(requirements.memory.values()))


def validate_config(kind: str, values: Mapping[str, Any]) -> JobConfig:
    """Return the config of a kind with these values. Raises the errors of `parse_config`."""
    return parse_config(get_kind(kind).config, values)


def parse_config(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Return a config with these values. Raises `ConfigError` for the first invalid field, with
    further errors in `others`."""
    try:
        return config.model_validate(dict(values))
    except ValidationError as error:
        by_field: dict[str | None, ConfigError] = {}
        for details in error.errors():
            config_error = _config_error(config, details)
            by_field.setdefault(config_error.field, config_error)
        first, *others = by_field.values()
        first.others = tuple(others)
        raise first from error


def _config_error(config: type[JobConfig], error: ErrorDetails) -> ConfigError:
    context_field = error.get("ctx", {}).get("field")  # set for contradicting settings
    name = str(error["loc"][0]) if error["loc"] else context_field
    info = config.model_fields.get(name or "")
    title = (info.title if info else None) or name or "The config"
    description = (info.description if info else None) or ""
    reason = f"{_message(error, description)}.".replace("..", ".")
    return ConfigError(f"{title} was not accepted.", reason, "", name)


def _message(error: ErrorDetails, description: str) -> str:
    """Return a pydantic error in plain words. The first sentence of the field's description names
    the allowed values of a pattern."""
    if template := MESSAGES.get(error["type"]):
        return template.format(**error.get("ctx", {}), allowed=description.split(". ")[0])
    return str(error["msg"]).removeprefix("Value error, ")


def check_and_estimate(kind: str, values: Mapping[str, Any]) -> tuple[JobConfig, Estimate]:
    """Return the validated config and its estimate. Raises `SlimscopeError` with further errors in
    `others`, found by setting the invalid fields to their defaults."""
    try:
        config = validate_config(kind, values)
        return config, estimate(get_kind(kind), config)
    except SlimscopeError as error:
        error.others = _further_errors(kind, values, error)
        raise


def _further_errors(
    kind: str, values: Mapping[str, Any], first: SlimscopeError
) -> tuple[SlimscopeError, ...]:
    """Return the other errors of a config, including those found after invalid fields are set to
    their defaults. Stops at an invalid model: checks against the default model are meaningless."""
    errors = [first, *first.others]
    while not {None, MODEL} & {error.field for error in errors}:
        invalid_fields = {error.field for error in errors}
        valid_values = {name: value for name, value in values.items() if name not in invalid_fields}
        try:
            estimate(get_kind(kind), validate_config(kind, valid_values))
        except SlimscopeError as error:
            if error.field not in invalid_fields:
                errors += [error, *error.others]
                continue
        break
    return tuple(error for error in errors[1:] if error.field is not None)


def submit(
    kind: str,
    values: Mapping[str, Any],
    actor: Actor,
    *,
    name: str = "",
    priority: int = 0,
    after: Sequence[int] = (),
    environment: Mapping[str, Any] = EMPTY,
) -> Job:
    """Validate a config and add a run to the queue.

    Args:
        kind: kind of the run.
        values: config values; others have their defaults.
        actor: owner of the run.
        name: name chosen by the user.
        priority: higher priorities start first.
        after: ids of runs to wait for, in addition to those whose models or drafters are used.
        environment: initial environment of the run.

    Raises:
        ForbiddenError, RateLimitError: the actor lacks permission or submits too often.
        SlimscopeError: invalid config; `field` names the invalid field.
    """
    permissions.require_adding(actor)
    gate.changes.spend(actor, spend=False)  # checked first, because validation takes time
    config, cost = check_and_estimate(kind, values)
    run = new_run(config, cost, after)
    return service.enqueue(
        kind, run, actor, name=name, priority=priority, cost=cost, known=environment
    )


def new_run(config: JobConfig, cost: Estimate, after: Sequence[int] = ()) -> service.NewRun:
    """Return the queue entry of a config and its estimate. `after` is that of `submit`."""
    record = config.model_dump(mode="json")
    plan = cost.plan.model_dump(mode="json") if cost.plan else None
    return service.NewRun(record, [*needed_runs(record), *after], plan, cost.sizes, cost)


def command_line(
    kind: str, values: Mapping[str, Any], sweep: Mapping[str, Sequence[str]] = EMPTY
) -> str:
    """Return the shell command that queues the same runs, without default values."""
    arguments = ["slimscope", "submit", kind]
    for name, info in get_kind(kind).config.model_fields.items():
        value = values.get(name, info.default)
        if value is None or value == info.default or name in sweep:
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(option if value else "--no-" + option.removeprefix("--"))
        else:
            arguments += [option, str(value)]
    for name, swept_values in sweep.items():
        arguments += ["--sweep", f"{name.replace('_', '-')}={values_text(swept_values)}"]
    return shlex.join(arguments)


def values_text(values: Sequence[str]) -> str:
    """Return values as a comma-separated text, with quotes around values with commas."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
