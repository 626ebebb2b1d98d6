"""The table of runs: filter, order, columns, baseline and selection, as the address describes them,
and export of the rows as CSV and JSON.

The filter language: `sparsity>0.4 kind:sds tag:demo -owner:mira "half way"`. All terms must match.
`key:text` matches a part of the column's text (a tag must match completely), `=` and `!=` compare
the complete value, `<`, `<=`, `>` and `>=` numbers, which may have a unit (40%, 2h, 500MB). A word
without a key is searched for in all texts of the run. A leading `-` negates a term.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import pandas as pd

from backend.store.states import ACTIVE
from backend.store.tables import RUN_NAME
from jobs.fields.models import original_model
from ui.format import iso
from ui.runs import columns as run_columns
from ui.runs.columns import AGE, GROUPS, NEWEST, RESULTS, RUN_COLUMN, Column, find_column
from ui.runs.groups import GROUPINGS, Group, grouped
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
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ":": operator.eq,
}
ORDER_OPERATORS = ("<", "<=", ">", ">=")
MAX_PINS = 5
SWEEP = "sweep"  # default grouping
MAX_LETTERS = 300  # characters of a text in the address
SAVED_FIELDS = (
    "q",
    "sort",
    "dir",
    "cols",
    "group",
    "base",
    "pins",
)  # address fields of a saved view
Address = dict[str, str]  # address fields that a button writes


@dataclass(frozen=True)
class FilterTerm:
    """One condition of a filter; without a column, a full-text search."""

    column: Column | None
    op: str
    text: str
    negated: bool

    def holds(self, row: RunRow) -> bool:
        """Return True if the row satisfies the condition."""
        return self._holds(row) != self.negated

    def _holds(self, row: RunRow) -> bool:
        if self.column is None:
            return self.text.lower() in row.text
        value = self.column.measure(row)
        if value is None:
            return self.op == "!="
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            operand = parse_number(self.text)
            return operand is not None and COMPARISONS[self.op](value, operand)
        operand_text = self.text.lower()
        if isinstance(value, (list, tuple)):  # tags
            return (operand_text in [str(v).lower() for v in value]) != (self.op == "!=")
        text = str(value).lower()
        if self.op == ":":
            return operand_text in text
        return self.op not in ORDER_OPERATORS and COMPARISONS[self.op](text, operand_text)


@dataclass(frozen=True)
class RunFilter:
    """A parsed filter: its conditions, and messages about terms that could not be parsed."""

    terms: Sequence[FilterTerm]
    problems: Sequence[str]

    def matching(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """The rows that satisfy all conditions."""
        return [row for row in rows if all(term.holds(row) for term in self.terms)]


def parse_filter(text: str, columns: Mapping[str, Column]) -> RunFilter:
    """Parse a filter. A term that cannot be parsed becomes a problem and does not filter."""
    terms: list[FilterTerm] = []
    problems: list[str] = []
    for match in TERM.finditer(text):
        minus, key, op, quoted, word = match.groups()
        value = quoted if word is None else word
        column = find_column(key, columns) if key else None
        if key and column is None and op == ":":
            key, value = None, f"{key}:{value}"  # a word that contains a colon
        if key and column is None:
            similar = get_close_matches(key.lower(), columns, 1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            problems.append(f"No column is called {key[:40]!r}.{hint}")
        elif column and op in ORDER_OPERATORS and parse_number(value) is None:
            problems.append(f"{column.title} is a number, {value[:40]!r} is not.")
        elif value:
            terms.append(FilterTerm(column, op or "", value, bool(minus)))
    return RunFilter(terms, problems)


def parse_number(text: str) -> float | None:
    """The value of "0.4", "40%", "2h" or "500MB"; None if the text is not a number."""
    match = NUMBER.fullmatch(text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit is not None else None


def sorted_rows(rows: Sequence[RunRow], by: Column, is_descending: bool) -> list[RunRow]:
    """The rows sorted by a column; rows without a value are last in both directions."""

    def key(value: Any) -> tuple[bool, Any]:  # a setting can have numbers and texts: numbers first
        return (True, value.lower()) if isinstance(value, str) else (False, value)

    values = [(by.value(row), row) for row in rows]
    keyed = [(key(value), row) for value, row in values if not _missing(value)]
    keyed.sort(key=itemgetter(0), reverse=is_descending)
    return [row for _, row in keyed] + [row for value, row in values if _missing(value)]


def _missing(value: Any) -> bool:
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def to_csv(rows: Sequence[RunRow], columns: Sequence[Column]) -> str:
    """CSV for programs: names with units, values with full precision, age as a time in UTC."""
    heads = [column.field or column.key for column in columns]
    return csv_text([[_export_value(row, column) for column in columns] for row in rows], heads)


def csv_text(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """CSV in which no cell is a spreadsheet formula; None is an empty cell."""
    cells = [[escape_formula(value) for value in row] for row in rows]
    return pd.DataFrame(cells, columns=[*heads], dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def to_json(rows: Sequence[RunRow], columns: Sequence[Column]) -> str:
    """A JSON list with one object per row, with values as in `to_csv`."""
    keys = ["added" if column is AGE else column.key for column in columns]
    objects = [
        {key: _export_value(row, column) for key, column in zip(keys, columns, strict=True)}
        for row in rows
    ]
    return json.dumps(objects, indent=1, ensure_ascii=False)


EXPORTS: Mapping[str, Callable[[Sequence[RunRow], Sequence[Column]], str]] = {
    "csv": to_csv,
    "json": to_json,
}


def escape_formula(value: Any) -> Any:
    """The value, with a quote in front of a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _export_value(row: RunRow, column: Column) -> Any:
    if column is RUN_COLUMN:
        return row.job.run
    return iso(row.job.created_at) if column is AGE else column.value(row)


def query_text(request: gr.Request, name: str) -> str:
    """A text field of the address, cut to `MAX_LETTERS` characters; empty if absent."""
    return str(dict(request.query_params or {}).get(name, ""))[:MAX_LETTERS]


def query_list(request: gr.Request, name: str, limit: int = 100) -> tuple[str, ...]:
    """A list of at most `limit` runs in the address, without malformed and repeated names."""
    text = str(dict(request.query_params or {}).get(name, ""))[: 20 * limit]
    return tuple(dict.fromkeys(n for n in text.split(",") if RUN_NAME.fullmatch(n)))[:limit]


@dataclass(frozen=True)
class TableQuery:
    """The table of runs that an address describes.

    Attributes:
        q: text of the filter.
        sort: key of the column that sorts the rows.
        descending: the order is descending.
        page: number of the page, from 1.
        cols: keys of the visible columns; empty for the default ones.
        base: the baseline run; empty for none.
        pins: runs that stay at the top.
        pick: selected runs.
        group: key of the grouping.
        open: sweeps whose runs are visible.
    """

    q: str
    sort: str
    descending: bool
    page: int
    cols: tuple[str, ...]
    base: str
    pins: tuple[str, ...]
    pick: tuple[str, ...]
    group: str = SWEEP
    open: tuple[str, ...] = ()

    @classmethod
    def from_address(cls, request: gr.Request) -> "TableQuery":
        """The query in the address of a request; malformed fields take their defaults."""
        page, group = (query_text(request, name) for name in ("page", "group"))
        return cls(
            q=query_text(request, "q"),
            sort=query_text(request, "sort") or NEWEST,
            descending=query_text(request, "dir") != "asc",
            page=int(page) if re.fullmatch(r"\d{1,6}", page) else 1,
            cols=tuple(filter(None, query_text(request, "cols").split(","))),
            base=next(iter(query_list(request, "base", 1)), ""),
            pins=query_list(request, "pins", MAX_PINS),
            pick=query_list(request, "pick"),
            group=group if group in GROUPINGS else SWEEP,
            open=query_list(request, "open"),
        )


def saved_query(query: Mapping[str, Any]) -> str:
    """The query string of a saved view, from the fields of an address."""
    return urlencode({k: str(query[k])[:MAX_LETTERS] for k in SAVED_FIELDS if query.get(k)})


@dataclass(frozen=True)
class TableResult:
    """The runs and columns of a query.

    Attributes:
        query: the query.
        all_columns: all columns by key.
        columns: visible columns.
        by: column that sorts the rows.
        filter: parsed filter.
        rows: all runs that match the filter, sorted.
        total: number of runs before filtering.
        base: baseline run, which stays at the top; None without one.
        pinned: runs that stay below it.
        selected: selected runs.
    """

    query: TableQuery
    all_columns: dict[str, Column]
    columns: list[Column]
    by: Column
    filter: RunFilter
    rows: list[RunRow]
    total: int
    base: RunRow | None
    pinned: list[RunRow]
    selected: list[RunRow]

    @cached_property
    def groups(self) -> list[Group]:
        """All groups of rows, without the top rows, and without runs that are only in the queue,
        which the page shows anyway, unless the filter asks for them."""
        top_ids = {row.head.id for row in self.top_rows}
        rows = [
            row
            for row in self.rows
            if row.head.id not in top_ids
            and (self.query.q or row.head.sweep or row.head.state not in ACTIVE)
        ]
        groups = grouped(rows, self.query.group, self.query.open)
        if self.by.key != NEWEST or not self.query.descending:
            return groups
        # of the newest runs first, a sweep still lists its runs as they were submitted
        return [replace(g, rows=g.rows[::-1]) if g.sweep else g for g in groups]

    @property
    def pages(self) -> int:
        """The number of pages."""
        return max(1, -(-len(self.groups) // GROUPINGS[self.query.group].page_groups))

    @property
    def page(self) -> int:
        """The number of the visible page, from 1."""
        return max(1, min(self.query.page, self.pages))

    @property
    def page_groups(self) -> Sequence[Group]:
        """The groups of the visible page."""
        number = GROUPINGS[self.query.group].page_groups
        return self.groups[(self.page - 1) * number : self.page * number]

    @property
    def page_rows(self) -> list[RunRow]:
        """The rows of the visible page, with those of folded sweeps."""
        groups = (g.rows if g.sweep else g.shown for g in self.page_groups)
        return [*self.top_rows, *dict.fromkeys(row for rows in groups for row in rows)]

    @property
    def top_rows(self) -> list[RunRow]:
        """The rows that stay at the top: baseline and pinned runs."""
        return [row for row in (self.base, *self.pinned) if row]

    @property
    def mixed_models(self) -> int:
        """Number of models among results that are sorted together; 0 if no result sorts them."""
        if self.by.group != RESULTS or self.query.group == "model":
            return 0
        measured = (row.head.config for row in self.rows if not _missing(self.by.value(row)))
        return len({*map(original_model, {str(config.get("model", "")) for config in measured})})

    def selected_among(self, rows: Sequence[RunRow]) -> str:
        """State of a checkbox of rows, for `aria-checked`: "true", "false" or "mixed"."""
        count = sum(row.head.run in self.query.pick for row in rows)
        return "true" if count and count == len(rows) else "mixed" if count else "false"

    def select(self, rows: Sequence[RunRow]) -> Address:
        """The address after a click on a checkbox of rows."""
        runs = [row.head.run for row in rows]
        others = [run for run in self.query.pick if run not in runs]
        are_selected = self.selected_among(rows) == "true"
        return {"pick": ",".join(others if are_selected else [*others, *runs])}

    def sort_by(self, column: Column) -> Address:
        """The address after a click on a heading: numbers begin descending, a second click
        reverses the order."""
        is_current = column.key == self.by.key
        ascending = self.query.descending if is_current else not column.numeric
        return {"sort": column.key, "dir": "asc" if ascending else "desc", "page": ""}

    def toggle_column(self, column: Column) -> Address:
        """The address after a column is shown or hidden."""
        keys = [c.key for c in self.columns]
        remaining = [key for key in keys if key != column.key]
        return {"cols": ",".join(remaining if column.key in keys else [*keys, column.key])}

    @property
    def column_groups(self) -> dict[str, list[Column]]:
        """The columns of the menu by group heading; the run's own column cannot be hidden."""
        optional = [c for c in self.all_columns.values() if c.key != RUN_COLUMN.key]
        groups = {group: [c for c in optional if c.group == group] for group in GROUPS}
        return {group: columns for group, columns in groups.items() if columns}


def query_runs(query: TableQuery) -> TableResult:
    """Run a query. Archived and deleted runs are included only if the filter mentions them."""
    rows_with_deleted = all_rows(deleted=True)
    columns = run_columns.columns(rows_with_deleted)
    parsed = parse_filter(query.q, columns)
    filtered_keys = {term.column.key for term in parsed.terms if term.column}
    runs = [
        row
        for row in rows_with_deleted
        if (not row.head.archived_at or "archived" in filtered_keys)
        and (not row.head.removed_at or "deleted" in filtered_keys)
    ]
    by = run_columns.find_column(query.sort, columns) or columns[NEWEST]
    rows = sorted_rows(parsed.matching(runs), by, query.descending)
    base = chosen(runs, [query.base])
    return TableResult(
        query=query,
        all_columns=columns,
        columns=run_columns.visible_columns(query.cols, columns),
        by=by,
        filter=parsed,
        rows=rows,
        total=len(runs),
        base=base[0] if base else None,
        pinned=[row for row in chosen(runs, query.pins) if row not in base],
        selected=chosen(runs, query.pick),
    )
