"""Runs: the queue, and all runs: filter, group, sort, compare, tag and export them."""

import gradio as gr
from markupsafe import Markup

from backend.errors import ConfigError, SlimscopeError
from backend.queue import labels, permissions
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.states import State
from backend.store.tables import RUN_NAME, Job
from jobs.operations.registry import OPERATIONS
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load
from ui.gradio_patches import event_data
from ui.pages.runs.queue import queue_html
from ui.pages.runs.sweeps import cell, summary, sweep_actions
from ui.pages.runs.thumbnails import thumbnails
from ui.runs.actions import bulk_actions, carry_out, run_action
from ui.runs.groups import GROUPINGS, Group
from ui.runs.html import run_description
from ui.runs.names import shared_description
from ui.runs.rows import all_rows
from ui.runs.view import (
    EXPORTS,
    TableQuery,
    TableResult,
    query_runs,
    query_text,
    saved_query,
)
from ui.templates import fragments
from ui.widgets.html import (
    LATEST,
    WIDGETS,
    Download,
    HtmlPanel,
    file_payload,
    show_error,
    show_html,
    skeleton,
)
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/runs/page.html")
WRITE_FILTER = """(q) => {
  const current = new URLSearchParams(window.location.search).get('q') || '';
  if (q !== current) slimscope.address({ q, page: '' });
  return [q];
}"""
EXAMPLE = "Filter: sparsity>0.4 kind:sds state:failed tag:demo wanda"
UNDO = {"archive": "unarchive", "unarchive": "archive", "delete": "restore", "tag": "untag"}
MAX_UNDONE = 100  # runs


def build() -> None:
    with gr.Row(elem_classes="toolbar", elem_id="runs-toolbar"):
        filter_box = gr.Textbox(
            label="Filter",
            show_label=False,
            placeholder=EXAMPLE,
            max_lines=1,
            scale=4,
            min_width=200,
            elem_id="runs-filter",
        )
        shown = Outputs(tools=HtmlPanel(skeleton(36), elem_id="runs-tools"))
    message = HtmlPanel(visible=False, elem_id="runs-said")
    outcome = Outputs(message=message, download=Download())
    shown["queue"] = HtmlPanel(elem_id="runs-queue")
    shown["table"] = HtmlPanel(skeleton(400), elem_id="runs-board")

    show = shown.named(draw), None, shown.components
    on_load(filter_text, None, filter_box)
    live(*show)
    # `input` is not raised when text is pasted or dropped
    filter_box.change(
        shown.named(filtered), filter_box, shown.components, js=WRITE_FILTER, **LATEST
    )
    for panel in (*shown.values(), message):
        viewed = panel.view(*show, **LATEST)
        viewed.then(filter_text, None, filter_box, **SILENT_EVENT)
        panel.on_action(outcome.named(act), outcome.components, show)


def filter_text(request: gr.Request) -> str:
    return query_text(request, "q")


def filtered(_filter: str, request: gr.Request) -> Updates:
    return draw(request)


def draw(request: gr.Request) -> Updates:
    table, user = query_runs(TableQuery.from_address(request)), current_user(request)
    queue = queue_html(user)
    shown = {"queue": gr.update(value=queue, visible=bool(queue))}
    if not table.total:
        return {**shown, "tools": "", "table": HTML.nothing()}
    off = permissions.may_not_change(user)
    tools = HTML.tools(table, GROUPINGS, _lists(), queries.views(), off)
    return {**shown, "tools": tools, "table": board(table, user)}


def board(table: TableResult, user: Actor) -> Markup:
    """The table with its toolbar and pages."""
    summaries = {
        group.sweep: _sweep(group, table, user) for group in table.page_groups if group.sweep
    }
    actions = bulk_actions(table, user)
    return HTML.board(table, actions, thumbnails, run_description, summaries)


def _sweep(group: Group, table: TableResult, user: Actor) -> tuple[object, ...]:
    """Summary, actions, description and cells of a sweep."""
    found = summary(group)
    cells = [(column, cell(column, found, group.rows)) for column in table.columns[1:]]
    return found, sweep_actions(found.jobs, user), shared_description(found.jobs), cells


def _lists() -> list[tuple[str, str, int]]:
    """Lists of runs that need attention or are hidden: title, filter and number of runs."""
    heads = [row.head for row in all_rows(deleted=True)]
    seen = [head for head in heads if not head.removed_at]
    failed = [h for h in seen if h.state in (State.FAILED, State.LOST) and not h.archived_at]
    lists = [
        ("Failed", "state:failed", sum(head.state == State.FAILED for head in failed)),
        ("Lost", "state:lost", sum(head.state == State.LOST for head in failed)),
        ("Archived", "archived:yes", sum(bool(head.archived_at) for head in seen)),
        ("Deleted", "deleted:yes", len(heads) - len(seen)),
    ]
    return [entry for entry in lists if entry[2]]


def act(event: gr.EventData, request: gr.Request) -> Updates:
    data = {key: str(value or "") for key, value in event_data(event).items()}
    action, text, name = (data.get(key, "") for key in ("do", "text", "run"))
    try:
        if action in EXPORTS:
            table = query_runs(TableQuery.from_address(request))
            content = EXPORTS[action](table.rows, table.columns).encode()
            file = file_payload(f"slimscope-runs.{action}", content)
            return {"message": show_html(), "download": file}
        message = _carry_out(action, name, text, data.get("file", ""), request)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_html(message)}


def _carry_out(action: str, name: str, text: str, undone: str, request: gr.Request) -> Markup:
    """Carry out an action other than an export; return the message."""
    user = current_user(request)
    if action == "save-view":
        labels.save_view(text, saved_query(dict(request.query_params or {})), user)
        return WIDGETS.success(f"The view {text.strip()} is saved for all users.")
    if action == "delete-view":
        labels.delete_view(name, user)
        return WIDGETS.success(f"The view {name} is deleted.")
    if action == "after":
        OPERATIONS["next"].call_all(user, run=name, after=text)
        return WIDGETS.success(f"{name} was moved in the queue.")
    if action == "undo" and undone in UNDO.values():
        runs = [run for run in name.split(",") if RUN_NAME.fullmatch(run)][:MAX_UNDONE]
        jobs = [queries.job(run) for run in runs]
        return WIDGETS.success(carry_out(undone, jobs, text, user))
    if name:
        return WIDGETS.success(run_action(action, name, user, text))
    jobs = [row.job for row in query_runs(TableQuery.from_address(request)).selected]
    if not jobs:
        raise ConfigError("Nothing was done.", "No run is selected.")
    undo_runs = _undoable(action, jobs, text)
    message = carry_out(action, jobs, text, user)
    return HTML.done(message, UNDO.get(action, ""), undo_runs[:MAX_UNDONE], text)


def _undoable(action: str, jobs: list[Job], text: str) -> list[str]:
    """The runs that an action changes, so that undoing it changes no others."""
    tags = set(text.split())
    fits = {
        "archive": lambda job: not job.archived_at,
        "unarchive": lambda job: bool(job.archived_at),
        "delete": lambda job: not job.removed_at,
        "tag": lambda job: not tags & {*job.tags},
    }
    return [job.run for job in jobs if action in fits and fits[action](job)]


PAGE = Page("Runs", "runs", build, order=30, section="Runs", key="r")
