"""Rows of runs in order, and as files: CSV and JSON."""

import json
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pandas as pd

from ui.format import iso
from ui.runs.columns import AGE, RUN_COLUMN, Column
from ui.runs.rows import RunRow


def sorted_rows(rows: Sequence[RunRow], by: Column, descending: bool) -> list[RunRow]:
    def key(value: Any) -> tuple[bool, Any]:  # numbers before words: a setting may be either
        return (True, value.lower()) if isinstance(value, str) else (False, value)

    values = [(by.value(row), row) for row in rows]
    keyed = [(key(value), row) for value, row in values if not _missing(value)]
    keyed.sort(key=itemgetter(0), reverse=descending)
    return [row for _, row in keyed] + [row for value, row in values if _missing(value)]


def _missing(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def to_csv(rows: Sequence[RunRow], columns: Sequence[Column]) -> str:
    """CSV for programs: names with units, values with full precision, age as a time in UTC."""
    heads = [c.field or c.key for c in columns]
    return csv_text([[_exported(row, c) for c in columns] for row in rows], heads)


def csv_text(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """CSV without spreadsheet formulas; None is an empty cell."""
    cells = [[safe(value) for value in row] for row in rows]
    return pd.DataFrame(cells, columns=[*heads], dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def to_json(rows: Sequence[RunRow], columns: Sequence[Column]) -> str:
    objects = [{"added" if c is AGE else c.key: _exported(row, c) for c in columns} for row in rows]
    return json.dumps(objects, indent=1, ensure_ascii=False)


def safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _exported(row: RunRow, column: Column) -> Any:
    if column is RUN_COLUMN:
        return row.job.run
    return iso(row.job.created_at) if column is AGE else column.value(row)
