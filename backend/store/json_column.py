"""Columns of JSON values, with empty values in place of damaged ones."""

import json
import math
from sys import intern
from typing import Any

from sqlalchemy import JSON, TypeDecorator

from backend.errors import ConfigError

REPLACEMENT_CHARACTER = "\ufffd"  # replaces invalid UTF-8 bytes


class DamagedJson(dict[str, Any]):
    """Empty object in place of a column value that is not valid JSON or has another type."""


class DamagedList(list[Any]):
    """Empty list in place of a column value that is not valid JSON or has another type."""


_DECODER = json.JSONDecoder(  # interned names and texts are in memory once for all rows
    object_pairs_hook=lambda pairs: {
        intern(name): intern(v) if isinstance(v, str) else v for name, v in pairs
    }
)


def read_json(data: str | bytes) -> Any:
    """The value of JSON from a column; a `DamagedJson` if it is invalid.

    We store ASCII, so a replacement character shows that bytes were damaged."""
    try:
        text = data.decode() if isinstance(data, bytes) else data  # depends on the driver
        return DamagedJson() if REPLACEMENT_CHARACTER in text else _DECODER.decode(text)
    except (ValueError, RecursionError):
        return DamagedJson()


def read_object(data: str | bytes) -> dict[str, Any]:
    """The object of JSON from a column; a `DamagedJson` if it is not a valid object."""
    value = read_json(data)
    return value if isinstance(value, dict) else DamagedJson()


class JsonColumn(TypeDecorator[Any]):
    """A column of JSON values of one type, `dict`, or `list` of the types `items`.

    Values of other types count as damaged."""

    impl = JSON
    cache_ok = True

    def __init__(
        self, kind: type, optional: bool = False, items: tuple[type, ...] = (object,)
    ) -> None:
        super().__init__()
        self.kind, self.optional, self.items = kind, optional, items

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """The value of the column, or its replacement if it is damaged."""
        if value is None and self.optional:
            return value
        if self.kind is dict:
            return value if isinstance(value, dict) else DamagedJson()
        is_intact = isinstance(value, list) and all(isinstance(x, self.items) for x in value)
        return value if is_intact else DamagedList()


def write_json(value: Any) -> str:
    """A value as ASCII JSON; numbers that are not finite, which JSON lacks, become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value))


def finite(value: Any) -> Any:
    """A copy of a value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_intact(value: Any, title: str = "The config") -> None:
    """Raise `ConfigError` for a damaged value, which defaults must not replace."""
    if isinstance(value, DamagedJson):
        raise ConfigError(
            f"{title} of this run cannot be read.",
            "Its row in the database is damaged.",
            "Add the run again.",
        )
