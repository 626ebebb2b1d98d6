"""Filter language of the table of runs: `sparsity>0.4 kind:sds tag:demo -owner:mira "half way"`.

All terms must match. `key:text` matches a part of the column's text (a tag must be whole), `=`
and `!=` the whole value, `<`, `<=`, `>` and `>=` numbers, which may have a unit (40%, 2h,
500MB). A word without a key is searched for in all texts of the run. A leading `-` negates a
term."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ui.runs.columns import Column, find_column
from ui.runs.rows import RunRow

TERM = re.compile(  # minus, key, operator, quoted text, word
    r'(-?)(?:([A-Za-z_][\w.]*)(>=|<=|!=|[:=<>]))?(?:"([^"]*)"?|(\S+))'
)
NUMBER = re.compile(r"([+\-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+\-]?\d+)?)\s*([A-Za-z%]*)")
UNITS = {
    "": 1.0,
    "%": 0.01,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
}
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ":": operator.eq,
}
ORDERS = ("<", "<=", ">", ">=")


@dataclass(frozen=True)
class FilterTerm:
    """One condition; without a column, a full-text search."""

    column: Column | None
    op: str
    text: str
    negated: bool

    def holds(self, row: RunRow) -> bool:
        return self._holds(row) != self.negated

    def _holds(self, row: RunRow) -> bool:
        if self.column is None:
            return self.text.lower() in row.text
        value = self.column.measure(row)
        if value is None:
            return self.op == "!="
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            wanted = parse_number(self.text)
            return wanted is not None and COMPARE[self.op](value, wanted)
        return _text_matches(value, self.op, self.text.lower())


@dataclass(frozen=True)
class RunFilter:
    terms: Sequence[FilterTerm]
    problems: Sequence[str]

    def passed(self, rows: Sequence[RunRow]) -> list[RunRow]:
        return [row for row in rows if all(term.holds(row) for term in self.terms)]


def parse(text: str, columns: Mapping[str, Column]) -> RunFilter:
    """Parses a filter. A term that cannot be parsed becomes a problem and filters nothing."""
    terms: list[FilterTerm] = []
    problems: list[str] = []
    for match in TERM.finditer(text):
        minus, key, op, quoted, word = match.groups()
        value = quoted if word is None else word
        column = find_column(key, columns) if key else None
        if key and column is None and op == ":":
            key, value = None, f"{key}:{value}"  # a word with a colon in it
        if key and column is None:
            problems.append(_unknown(key, columns))
        elif column and op in ORDERS and parse_number(value) is None:
            problems.append(f"{column.title} is a number, {value[:40]!r} is not.")
        elif value:
            terms.append(FilterTerm(column, op or "", value, bool(minus)))
    return RunFilter(terms, problems)


def parse_number(text: str) -> float | None:
    """The number in "0.4", "40%", "2h" or "500MB"; None where there is none."""
    match = NUMBER.fullmatch(text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit is not None else None


def _text_matches(value: Any, op: str, wanted: str) -> bool:
    if isinstance(value, (list, tuple)):  # tags
        return (wanted in [str(v).lower() for v in value]) != (op == "!=")
    text = str(value).lower()
    if op in ORDERS:
        return False
    return {":": wanted in text, "=": wanted == text, "!=": wanted != text}[op]


def _unknown(key: str, columns: Mapping[str, Column]) -> str:
    near = get_close_matches(key.lower(), columns, 1)
    return f"No column is called {key[:40]!r}." + (f" Did you mean {near[0]}?" if near else "")
