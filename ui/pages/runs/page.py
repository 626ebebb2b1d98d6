"""Runs: find some, see how far they are from a baseline, pick and compare, tag, export."""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from backend.store import queries
from ui.format import count, href
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load
from ui.pages.runs import saved_views
from ui.runs import bulk_actions
from ui.runs import table as run_table
from ui.runs.view import TableQuery, TableResult, query_runs, remembered, words
from ui.widgets.download import Download, file_payload
from ui.widgets.html import attribute, empty, skeleton
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.notice import notice, show_error, show_html, show_success

WRITE_ADDRESS = """(q) => {
  const held = new URLSearchParams(window.location.search).get('q') || '';
  if (q !== held) slimscope.address({ q, page: '' });
  return [q];
}"""
EXPORTS = {"csv": run_table.to_csv, "json": run_table.to_json}
EXAMPLE = "Filter: sparsity>0.4 kind:sds state:failed tag:demo wanda"


def build() -> None:
    told = notice("runs-said")
    with gr.Row(elem_classes="toolbar"):
        filter_box = gr.Textbox(
            label="Filter",
            show_label=False,
            placeholder=EXAMPLE,
            max_lines=1,
            scale=4,
            min_width=200,
            elem_id="runs-filter",
        )
        tools = HtmlPanel(skeleton(36), elem_id="runs-tools")
        saver = Download()
    board = HtmlPanel(skeleton(400), elem_id="runs-board")

    shown = [tools, board]
    on_load(wanted, None, filter_box)
    live(draw, None, shown)
    # `input` is not raised when text is pasted or dropped
    filter_box.change(typed, filter_box, shown, js=WRITE_ADDRESS, **LATEST)
    for one in shown:
        one.view(draw, None, shown, **LATEST).then(wanted, None, filter_box, **SILENT_EVENT)
        acted = one.act(act, None, [told, saver], show_progress="hidden", api_visibility="private")
        acted.then(draw, None, shown, **SILENT_EVENT)


# what is shown ------------------------------------------------------------------------------------


def wanted(request: gr.Request) -> str:
    """The filter in the address: any text, shown as text only."""
    return words(request, "q")


def typed(_words: str, request: gr.Request) -> list[Any]:
    """The table, after the browser has written the filter into the address."""
    return draw(request)


def draw(request: gr.Request) -> list[Any]:
    """Tools and table."""
    found = query_runs(TableQuery.of(request))
    if not found.total:
        return ["", empty("No runs yet.", (href("launch"), "New run"))]
    who = current_user(request)
    tools = saved_views.tools(found, queries.views(), who)
    return [tools, bulk_actions.bar(found, who) + _table(found)]


def _table(found: TableResult) -> str:
    if not found.rows and not found.base and not found.pinned:
        return _no_match(found)
    table = run_table.html(
        found.page_rows,
        found.columns,
        found.by,
        found.look.down,
        base=found.base,
        pinned=found.pinned,
        picked=found.look.pick,
    )
    return table + (_pager(found) if found.rows else _no_match(found))


def _no_match(found: TableResult) -> str:
    clear = attribute({"q": "", "page": ""})
    return (
        f'<div class="empty"><p>0 of {count(found.total)} match.</p><button type="button" '
        f'class="button" data-testid="clear-filter" data-view="{clear}">Clear the filter</button>'
        "</div>"
    )


def _pager(found: TableResult) -> str:
    if found.pages == 1:
        return ""
    turns = (("Previous", found.page - 1), ("Next", found.page + 1))
    buttons = [
        f'<button type="button" class="small" data-testid="{title.lower()}" '
        f'data-view="{attribute({"page": str(page)})}"'
        f"{'' if 1 <= page <= found.pages else ' disabled'}>{title}</button>"
        for title, page in turns
    ]
    words = f"Page {found.page} of {found.pages}"
    return f'<nav class="pager" aria-label="Pages">{words.join(buttons)}</nav>'


# what is done -------------------------------------------------------------------------------------


def act(event: gr.EventData, request: gr.Request) -> list[Any]:
    """Does what a button asks for: what was done or why not, and a file if one was asked for."""
    asked = {key: str(value or "") for key, value in (event._data or {}).items()}
    deed, text = asked.get("do", ""), asked.get("text", "")
    try:
        if deed in EXPORTS:
            return [show_html(""), export(deed, request)]
        if deed in ("save-view", "forget-view"):
            query = remembered(dict(request.query_params or {}))
            name = text if deed == "save-view" else asked.get("run", "")
            return [
                show_success(saved_views.perform(deed, name, query, current_user(request))),
                gr.skip(),
            ]
        found = query_runs(TableQuery.of(request))
        return [
            show_success(bulk_actions.perform(deed, found, text, current_user(request))),
            gr.skip(),
        ]
    except SlimscopeError as error:
        return [show_error(error), gr.skip()]


def export(form: str, request: gr.Request) -> dict[str, Any]:
    """All rows that match, in the order and with the columns of the screen, as a file."""
    found = query_runs(TableQuery.of(request))
    return file_payload(f"slimscope-runs.{form}", EXPORTS[form](found.rows, found.columns).encode())


PAGE = Page("Runs", "runs", build, order=30, key="r")
