"""How the runs are looked at, from the address: filter, order, columns, baseline, pins, picks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ui.runs import columns as run_columns
from ui.runs import filter as run_filter
from ui.runs import table
from ui.runs.columns import NEWEST, Column
from ui.runs.filter import RunFilter
from ui.runs.rows import RunRow, all_rows, chosen

PAGE_ROWS = 50
MOST_PINS = 5
MOST_NAMES = 100
LETTERS = 300
RUN = re.compile(r"[a-z][a-z0-9]*-\d{1,15}")
KEPT = ("q", "sort", "dir", "cols", "base", "pins")  # what a named view remembers


def words(request: gr.Request, name: str) -> str:
    """A text in the address, as it is: shown as text only."""
    return str(dict(request.query_params or {}).get(name, ""))[:LETTERS]


def names(request: gr.Request, name: str, most: int = MOST_NAMES) -> tuple[str, ...]:
    """A list of runs in the address; what looks like no run is left out."""
    text = str(dict(request.query_params or {}).get(name, ""))[: 20 * most]
    return tuple(dict.fromkeys(n for n in text.split(",") if RUN.fullmatch(n)))[:most]


@dataclass(frozen=True)
class TableQuery:
    """What the address says about the table of runs."""

    q: str
    sort: str
    down: bool
    page: int
    cols: tuple[str, ...]
    base: str
    pins: tuple[str, ...]
    pick: tuple[str, ...]

    @classmethod
    def of(cls, request: gr.Request) -> TableQuery:
        """The look the address asks for; odd values are ours to choose."""
        page = words(request, "page")
        return cls(
            q=words(request, "q"),
            sort=words(request, "sort") or NEWEST,
            down=words(request, "dir") != "asc",
            page=int(page) if re.fullmatch(r"\d{1,6}", page) else 1,
            cols=tuple(filter(None, words(request, "cols").split(","))),
            base=next(iter(names(request, "base", 1)), ""),
            pins=names(request, "pins", MOST_PINS),
            pick=names(request, "pick"),
        )


def remembered(query: Mapping[str, Any]) -> str:
    """The part of the address a named view keeps."""
    return urlencode({k: str(query[k])[:LETTERS] for k in KEPT if query.get(k)})


@dataclass(frozen=True)
class TableResult:
    """What there is to show.

    Attributes:
        known: every column there could be.
        rows: all runs that pass the filter, in order; `page_rows` are those of the page.
        total: how many runs there are.
    """

    look: TableQuery
    known: dict[str, Column]
    columns: list[Column]
    by: Column
    filter: RunFilter
    rows: list[RunRow]
    page: int
    total: int
    base: RunRow | None
    pinned: list[RunRow]
    picked: list[RunRow]

    @property
    def page_rows(self) -> Sequence[RunRow]:
        return self.rows[(self.page - 1) * PAGE_ROWS : self.page * PAGE_ROWS]

    @property
    def pages(self) -> int:
        return max(1, -(-len(self.rows) // PAGE_ROWS))


def query_runs(look: TableQuery) -> TableResult:
    """Everything the table shows for this look."""
    everything = all_rows()
    known = run_columns.columns(everything)
    filtered = run_filter.parse(look.q, known)
    by = run_columns.named(look.sort, known) or known[NEWEST]
    rows = table.arranged(filtered.passed(everything), by, look.down)
    base = chosen(everything, [look.base])
    return TableResult(
        look=look,
        known=known,
        columns=run_columns.picked(look.cols, known),
        by=by,
        filter=filtered,
        rows=rows,
        page=max(1, min(look.page, -(-len(rows) // PAGE_ROWS))),
        total=len(everything),
        base=base[0] if base else None,
        pinned=[row for row in chosen(everything, look.pins) if row not in base],
        picked=chosen(everything, look.pick),
    )
