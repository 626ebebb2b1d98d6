"""From field values to a queued job: the one way in for the form, the CLI and the API."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from backend.errors import ConfigError
from backend.queue import roles, service
from backend.queue.service import Actor
from backend.store.tables import Job
from jobs.estimate import estimate
from jobs.kind import Estimate, JobConfig, kind_named

NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})


def validated(kind: str, values: Mapping[str, Any]) -> JobConfig:
    """The config made of these values.

    Raises:
        ConfigError: with `field` naming the first field at fault, and the `others`.
    """
    config = kind_named(kind).config
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
    name = str(error["loc"][0]) if error["loc"] else None
    info = config.model_fields.get(name or "")
    title = (info.title if info else None) or name or "The config"
    reason = f"{_in_words(error)}.".replace("..", ".")
    return ConfigError(f"{title} was not accepted.", reason, "", name)


def _in_words(error: ErrorDetails) -> str:
    """A validator's complaint as a person would say it."""
    bounds = error.get("ctx", {})
    match error["type"]:
        case "int_type" | "int_parsing" | "int_from_float":
            return "It must be a whole number"
        case "float_type" | "float_parsing":
            return "It must be a number"
        case "greater_than_equal":
            return f"It must be {bounds['ge']} or more"
        case "less_than_equal":
            return f"It must be {bounds['le']} or less"
        case "literal_error":
            return f"It must be {bounds['expected']}"
        case "extra_forbidden":
            return "There is no such setting"
    return str(error["msg"]).removeprefix("Value error, ")


def checked(kind: str, values: Mapping[str, Any]) -> tuple[JobConfig, Estimate]:
    """The config and what it will cost; refuses what cannot work."""
    config = validated(kind, values)
    return config, estimate(kind_named(kind), config)


def submit(
    kind: str, values: Mapping[str, Any], actor: Actor, *, name: str = "", priority: int = 0
) -> Job:
    """Validates, checks, and adds one run to the queue.

    Raises:
        ForbiddenError, RateLimitError: the actor may not, or not so often.
        SlimscopeError: the config cannot be carried out; `field` says where it is wrong.
    """
    lane = kind_named(kind).lane
    roles.require_adding(actor, lane)
    roles.count_change(actor)  # before the config is looked into, which takes time
    config, cost = checked(kind, values)
    stored = config.model_dump(mode="json")
    return service.enqueue(kind, stored, actor, name=name, priority=priority, cost=cost, lane=lane)


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
