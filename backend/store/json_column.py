"""Columns of JSON: how values are written and read, and what stands in for damaged ones."""

import json
import math
from sys import intern
from typing import Any

from sqlalchemy import JSON, TypeDecorator

from backend.errors import ConfigError

REPLACED = "\ufffd"  # what stands in for bytes that are no UTF-8


class DamagedJson(dict[str, Any]):
    """Stands for stored JSON that cannot be read or is of another type than its column: empty."""


class DamagedList(list[Any]):
    """The same where a list is stored."""


_DECODER = json.JSONDecoder(  # names and texts of an object are held in memory once for all rows
    object_pairs_hook=lambda pairs: {
        intern(name): intern(v) if isinstance(v, str) else v for name, v in pairs
    }
)


def read_json(stored: str | bytes) -> Any:
    """The value of stored JSON; a `DamagedJson` where it is none. We store ASCII: a replacement
    character stands for bytes that were no text."""
    try:
        text = stored.decode() if isinstance(stored, bytes) else stored  # as the driver has it
        return DamagedJson() if REPLACED in text else _DECODER.decode(text)
    except (ValueError, RecursionError):
        return DamagedJson()


def read_object(stored: str | bytes) -> dict[str, Any]:
    """The object of stored JSON; a `DamagedJson` where it is none."""
    value = read_json(stored)
    return value if isinstance(value, dict) else DamagedJson()


class JsonColumn(TypeDecorator[Any]):
    """A column of JSON values of one type, `dict` or `list` of `items`; others are damaged."""

    impl = JSON
    cache_ok = True

    def __init__(
        self, kind: type, optional: bool = False, items: tuple[type, ...] = (object,)
    ) -> None:
        super().__init__()
        self.kind, self.optional, self.items = kind, optional, items

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """The stored value, or what stands in for it."""
        if value is None and self.optional:
            return value
        if self.kind is dict:
            return value if isinstance(value, dict) else DamagedJson()
        whole = isinstance(value, list) and all(isinstance(item, self.items) for item in value)
        return value if whole else DamagedList()


def write_json(value: Any) -> str:
    """A value as stored JSON, in ASCII. It has no word for a number that is not finite, which is
    stored as none."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value))


def finite(value: Any) -> Any:
    """A value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_intact(stored: Any, what: str = "The config") -> None:
    """Raise `ConfigError` for JSON that could not be read: defaults must not take its place."""
    if isinstance(stored, DamagedJson):
        raise ConfigError(
            f"{what} of this run cannot be read.",
            "Its row in the database is damaged.",
            "Add it anew.",
        )
