"""Runs: find one, compare figures at a glance, export."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.store import queries
from ui.components import run_table
from ui.components.board import LATEST, Board
from ui.components.cards import attribute, empty
from ui.components.plain import plain
from ui.components.run_table import NEWEST, Column, Row
from ui.components.saver import Saver, contents
from ui.format import count, href
from ui.frame import READER, Page, live, on_load, query

WRITE_ADDRESS = "(q) => { slimscope.address({ q }); return [q]; }"


def build() -> None:
    with gr.Row(elem_classes="toolbar"):
        words = gr.Textbox(
            label="Filter",
            show_label=False,
            placeholder="Filter: run, name, model, setting, state",
            max_lines=1,
            scale=4,
            min_width=200,
            elem_id="runs-filter",
        )
        counted = plain(elem_id="runs-count", min_width=80)
        save = gr.Button("Export CSV", size="sm", min_width=120, elem_id="runs-csv")
        saver = Saver()
    board = Board(elem_id="runs-board", min_height=200)

    shown = [board, counted]
    on_load(wanted, None, words)
    live(draw, None, shown)
    words.change(typed, words, shown, js=WRITE_ADDRESS, **LATEST)
    board.view(draw, None, shown, **LATEST).then(wanted, None, words, **READER)
    save.click(export, None, saver, **READER)


def wanted(request: gr.Request) -> str:
    """The filter in the address: any text, shown as text only."""
    return str(dict(request.query_params or {}).get("q", ""))[:200]


def typed(_words: str, request: gr.Request) -> list[Any]:
    """The table, after the browser has written the filter into the address."""
    return draw(request)


def shown_rows(request: gr.Request) -> tuple[list[Row], list[Column], Column, bool, int]:
    """Rows after filter and sort, the columns, the column sorted by and whether downwards, and
    how many runs there are."""
    jobs = queries.jobs()
    rows = run_table.rows(jobs, queries.results([job.id for job in jobs]))
    columns = run_table.columns(rows)
    key = query(request, "sort", NEWEST, [c.key for c in columns])
    by = next(c for c in columns if c.key == key)
    down = query(request, "dir", "desc", ("asc", "desc")) == "desc"
    found = run_table.arranged(run_table.filtered(rows, wanted(request)), by, down)
    return found, columns, by, down, len(rows)


def draw(request: gr.Request) -> list[Any]:
    """Table and count."""
    found, columns, by, down, total = shown_rows(request)
    if not total:
        return [empty("No runs yet.", (href("launch"), "New run")), ""]
    of = f"{count(len(found))} of {count(total)}"
    if not found:
        return [_no_match(of), f'<p class="quiet">{of}</p>']
    return [run_table.html(found, columns, by, down), f'<p class="quiet">{of}</p>']


def _no_match(of: str) -> str:
    clear = attribute({"q": ""})
    return (
        f'<div class="empty"><p>{of} match.</p><button type="button" class="button" '
        f'data-testid="clear-filter" data-view="{clear}">Clear the filter</button></div>'
    )


def export(request: gr.Request) -> dict[str, Any]:
    """The rows and columns on the screen as a CSV file."""
    found, columns, *_ = shown_rows(request)
    return contents("slimscope-runs.csv", run_table.to_csv(found, columns).encode())


PAGE = Page("Runs", "runs", build)
