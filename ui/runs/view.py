"""The table of runs as the address describes it: filter, order, columns, baseline, selection; and
its rows as files, CSV and JSON.

The language of the filter: `sparsity>0.4 kind:sds tag:demo -owner:mira "half way"`. All terms must
match. `key:text` matches a part of the column's text (a tag must be whole), `=` and `!=` the whole
value, `<`, `<=`, `>` and `>=` numbers, which may have a unit (40%, 2h, 500MB). A word without a key
is searched for in all texts of the run. A leading `-` negates a term.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.store.tables import RUN_NAME
from ui.format import iso
from ui.runs import columns as run_columns
from ui.runs.columns import AGE, GROUPS, NEWEST, RUN_COLUMN, Column, find_column
from ui.runs.rows import RunRow, all_rows, chosen

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
PAGE_ROWS = 50
MAX_PINS = 5
MAX_LENGTH = 300  # characters of a text in the address
SAVED_FIELDS = ("q", "sort", "dir", "cols", "base", "pins")  # the fields a saved view keeps
Address = dict[str, str]  # fields of the address a button writes


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
        wanted_text = self.text.lower()
        if isinstance(value, (list, tuple)):  # tags
            return (wanted_text in [str(v).lower() for v in value]) != (self.op == "!=")
        text = str(value).lower()
        if self.op == ":":
            return wanted_text in text
        return self.op not in ORDERS and COMPARE[self.op](text, wanted_text)


@dataclass(frozen=True)
class RunFilter:
    terms: Sequence[FilterTerm]
    problems: Sequence[str]

    def passed(self, rows: Sequence[RunRow]) -> list[RunRow]:
        return [row for row in rows if all(term.holds(row) for term in self.terms)]


def parse_filter(text: str, columns: Mapping[str, Column]) -> RunFilter:
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
            near = get_close_matches(key.lower(), columns, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"No column is called {key[:40]!r}.{hint}")
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


def query_text(request: gr.Request, name: str) -> str:
    return str(dict(request.query_params or {}).get(name, ""))[:MAX_LENGTH]


def query_list(request: gr.Request, name: str, most: int = 100) -> tuple[str, ...]:
    """List of runs in the address, without malformed names."""
    text = str(dict(request.query_params or {}).get(name, ""))[: 20 * most]
    return tuple(dict.fromkeys(n for n in text.split(",") if RUN_NAME.fullmatch(n)))[:most]


@dataclass(frozen=True)
class TableQuery:
    """Table of runs as the address describes it: filter `q`, sort column and direction, chosen
    columns (usual ones if empty), baseline, pinned and selected runs."""

    q: str
    sort: str
    down: bool
    page: int
    cols: tuple[str, ...]
    base: str
    pins: tuple[str, ...]
    pick: tuple[str, ...]

    @classmethod
    def from_address(cls, request: gr.Request) -> "TableQuery":
        page = query_text(request, "page")
        return cls(
            q=query_text(request, "q"),
            sort=query_text(request, "sort") or NEWEST,
            down=query_text(request, "dir") != "asc",
            page=int(page) if re.fullmatch(r"\d{1,6}", page) else 1,
            cols=tuple(filter(None, query_text(request, "cols").split(","))),
            base=next(iter(query_list(request, "base", 1)), ""),
            pins=query_list(request, "pins", MAX_PINS),
            pick=query_list(request, "pick"),
        )


def saved_query(query: Mapping[str, Any]) -> str:
    return urlencode({k: str(query[k])[:MAX_LENGTH] for k in SAVED_FIELDS if query.get(k)})


@dataclass(frozen=True)
class TableResult:
    """Runs and columns of a query: `rows` are all that match, in order, `total` counts all runs;
    baseline and `pinned` runs stay on top."""

    query: TableQuery
    all_columns: dict[str, Column]
    columns: list[Column]
    by: Column
    filter: RunFilter
    rows: list[RunRow]
    page: int
    total: int
    base: RunRow | None
    pinned: list[RunRow]
    selected: list[RunRow]

    @property
    def page_rows(self) -> Sequence[RunRow]:
        return self.rows[(self.page - 1) * PAGE_ROWS : self.page * PAGE_ROWS]

    @property
    def pages(self) -> int:
        return max(1, -(-len(self.rows) // PAGE_ROWS))

    @property
    def top_rows(self) -> list[RunRow]:
        return [row for row in (self.base, *self.pinned) if row]

    @property
    def other_rows(self) -> list[RunRow]:
        on_top = {row.job.id for row in self.top_rows}
        return [row for row in self.page_rows if row.job.id not in on_top]

    @property
    def page_selected(self) -> str:
        runs = [row.job.run for row in self.page_rows]
        count = sum(run in self.query.pick for run in runs)
        return "true" if count and count == len(runs) else "mixed" if count else "false"

    def select_page(self) -> Address:
        runs = [row.job.run for row in self.page_rows]
        others = [run for run in self.query.pick if run not in runs]
        return {"pick": ",".join(others if self.page_selected == "true" else [*others, *runs])}

    def sort_by(self, column: Column) -> Address:
        again = column.key == self.by.key
        ascending = self.query.down if again else not column.numeric
        return {"sort": column.key, "dir": "asc" if ascending else "desc", "page": ""}

    def toggle_column(self, column: Column) -> Address:
        keys = [c.key for c in self.columns]
        others = [key for key in keys if key != column.key]
        return {"cols": ",".join(others if column.key in keys else [*keys, column.key])}

    @property
    def column_groups(self) -> dict[str, list[Column]]:
        free = [c for c in self.all_columns.values() if c.key != RUN_COLUMN.key]
        groups = {group: [c for c in free if c.group == group] for group in GROUPS}
        return {group: columns for group, columns in groups.items() if columns}


def query_runs(query: TableQuery) -> TableResult:
    every = all_rows(deleted=True)
    columns = run_columns.columns(every)
    parsed = parse_filter(query.q, columns)
    named = {term.column.key for term in parsed.terms if term.column}
    runs = [  # archived and deleted ones where the filter names them
        row
        for row in every
        if (not row.head.archived_at or "archived" in named)
        and (not row.head.removed_at or "deleted" in named)
    ]
    by = run_columns.find_column(query.sort, columns) or columns[NEWEST]
    rows = sorted_rows(parsed.passed(runs), by, query.down)
    base = chosen(runs, [query.base])
    return TableResult(
        query=query,
        all_columns=columns,
        columns=run_columns.visible_columns(query.cols, columns),
        by=by,
        filter=parsed,
        rows=rows,
        page=max(1, min(query.page, -(-len(rows) // PAGE_ROWS))),
        total=len(runs),
        base=base[0] if base else None,
        pinned=[row for row in chosen(runs, query.pins) if row not in base],
        selected=chosen(runs, query.pick),
    )
