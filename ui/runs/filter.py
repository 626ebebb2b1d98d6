"""The language in which runs are filtered.

    sparsity>0.4 kind:sds state:failed tag:demo -owner:mira "half way"

Every term must hold. `key:text` holds where the column contains the text (a tag must be whole), `=`
and `!=` compare all of it, `<`, `<=`, `>` and `>=` compare figures, which may carry a unit: 40%,
2h, 500MB. A word without a key is looked for in everything a run is known by. `-` in front turns a
term around. A run that has no such figure does not pass a comparison.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ui.runs.columns import Column, named
from ui.runs.rows import RunRow

TERM = re.compile(
    r'(?P<minus>-?)(?:(?P<key>[A-Za-z_][\w.]*)(?P<op>>=|<=|!=|[:=<>]))?(?:"(?P<q>[^"]*)"?|(?P<w>\S+))'
)
NUMBER = re.compile(r"([+\-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+\-]?\d+)?)\s*([A-Za-z%]*)")
UNITS = {
    "": 1.0, "%": 0.01, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "kb": 1e3, "mb": 1e6,
    "gb": 1e9, "tb": 1e12,
}  # fmt: skip
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "=": operator.eq,
    "!=": operator.ne, ":": operator.eq,
}  # fmt: skip
ORDERS = ("<", "<=", ">", ">=")


@dataclass(frozen=True)
class FilterTerm:
    """One condition. Without a column, the text is looked for everywhere."""

    column: Column | None
    op: str
    text: str
    turned: bool

    def holds(self, row: RunRow) -> bool:
        """Whether a run passes."""
        return self._holds(row) != self.turned

    def _holds(self, row: RunRow) -> bool:
        if self.column is None:
            return self.text.lower() in row.text
        value = self.column.measure(row)
        if value is None:
            return self.op == "!="
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            wanted = figure(self.text)
            return wanted is not None and COMPARE[self.op](value, wanted)
        return _worded(value, self.op, self.text.lower())


@dataclass(frozen=True)
class RunFilter:
    """Terms, and what of the text was not understood."""

    terms: Sequence[FilterTerm]
    problems: Sequence[str]

    def passed(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """The rows for which every term holds."""
        return [row for row in rows if all(term.holds(row) for term in self.terms)]


def parse(text: str, columns: Mapping[str, Column]) -> RunFilter:
    """The filter a person wrote. What is not understood is a problem, and filters nothing."""
    terms: list[FilterTerm] = []
    problems: list[str] = []
    for match in TERM.finditer(text):
        key, op = match["key"], match["op"]
        value = match["w"] if match["w"] is not None else match["q"]
        column = named(key, columns) if key else None
        turned = bool(match["minus"])
        if key and column is None and op == ":":
            key, value = None, f"{key}:{value}"  # a word with a colon in it
        if key and column is None:
            problems.append(_unknown(key, columns))
        elif column and op in ORDERS and figure(value) is None:
            problems.append(f"{value[:40]!r} is no number to compare {column.title} with.")
        elif value:
            terms.append(FilterTerm(column, op or "", value, turned))
    return RunFilter(terms, problems)


def figure(text: str) -> float | None:
    """The number in "0.4", "40%", "2h" or "500MB"; None where there is none."""
    match = NUMBER.fullmatch(text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit is not None else None


def _worded(value: Any, op: str, wanted: str) -> bool:
    if isinstance(value, (list, tuple)):  # tags
        held = wanted in [str(v).lower() for v in value]
        return held != (op == "!=")
    text = str(value).lower()
    if op in ORDERS:
        return False
    return {":": wanted in text, "=": wanted == text, "!=": wanted != text}[op]


def _unknown(key: str, columns: Mapping[str, Column]) -> str:
    near = get_close_matches(key.lower(), columns, 1)
    return f"No column is called {key[:40]!r}." + (f" Did you mean {near[0]}?" if near else "")
