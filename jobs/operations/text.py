"""Answers as text for people: aligned columns, counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCALARS = (str, int, float, type(None))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of aligned columns."""
    cells = [[*header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = (map(str.ljust, row, widths) for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def as_text(answer: Any) -> str:
    """Any answer: a list of records as a table, a record as lines, of what is no structure."""
    if isinstance(answer, Mapping):
        return table(("", ""), answer.items()).lstrip()
    if not isinstance(answer, list):
        return str(answer)
    if not answer or not isinstance(answer[0], Mapping):
        return "\n".join(map(str, answer)) or "None."
    named = [key for key in answer[0] if all(isinstance(each.get(key), SCALARS) for each in answer)]
    rows = ([_cell(each.get(key)) for key in named] for each in answer)
    return table(named, rows)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def count(number: int) -> str:
    """1 run, 12 runs."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def names(runs: Sequence[str]) -> str:
    """The name of a single run, or "3 runs"."""
    return runs[0] if len(runs) == 1 else count(len(runs))


def named(records: Sequence[Mapping[str, Any]]) -> str:
    """The same, of records."""
    return names([each["id"] for each in records])
