"""Runs: filter, sort and select runs, compare them with a baseline, tag and export them."""

import gradio as gr

from backend.errors import ConfigError, SlimscopeError
from backend.queue import labels, permissions
from backend.store import queries
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load
from ui.gradio_patches import event_data
from ui.runs.actions import bulk_actions, carry_out
from ui.runs.view import TableQuery, query_runs, query_text, saved_query, to_csv, to_json
from ui.templates import fragments
from ui.widgets.html import (
    LATEST,
    Download,
    HtmlPanel,
    file_payload,
    notice,
    show_error,
    show_html,
    show_success,
    skeleton,
)
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/runs/page.html")
WRITE_FILTER = """(q) => {
  const current = new URLSearchParams(window.location.search).get('q') || '';
  if (q !== current) slimscope.address({ q, page: '' });
  return [q];
}"""
EXPORTS = {"csv": to_csv, "json": to_json}
EXAMPLE = "Filter: sparsity>0.4 kind:sds state:failed tag:demo wanda"


def build() -> None:
    outcome = Outputs(message=notice("runs-said"))
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
        shown = Outputs(tools=HtmlPanel(skeleton(36), elem_id="runs-tools"))
        outcome["download"] = Download()
    shown["table"] = HtmlPanel(skeleton(400), elem_id="runs-board")

    show = shown.named(draw), None, shown.components
    on_load(filter_text, None, filter_box)
    live(*show)
    # `input` is not raised when text is pasted or dropped
    filter_box.change(
        shown.named(filtered), filter_box, shown.components, js=WRITE_FILTER, **LATEST
    )
    for panel in shown.values():
        viewed = panel.view(*show, **LATEST)
        viewed.then(filter_text, None, filter_box, **SILENT_EVENT)
        panel.on_action(outcome.named(act), outcome.components, show)


def filter_text(request: gr.Request) -> str:
    return query_text(request, "q")


def filtered(_filter: str, request: gr.Request) -> Updates:
    return draw(request)


def draw(request: gr.Request) -> Updates:
    table = query_runs(TableQuery.from_address(request))
    if not table.total:
        return {"tools": "", "table": HTML.nothing()}
    user = current_user(request)
    return {
        "tools": HTML.tools(table, queries.views(), permissions.may_not_change(user)),
        "table": HTML.board(table, bulk_actions(table, user)),
    }


def act(event: gr.EventData, request: gr.Request) -> Updates:
    data = {key: str(value or "") for key, value in event_data(event).items()}
    action, text, name = (data.get(key, "") for key in ("do", "text", "run"))
    user = current_user(request)
    try:
        if action in EXPORTS:
            table = query_runs(TableQuery.from_address(request))
            content = EXPORTS[action](table.rows, table.columns).encode()
            file = file_payload(f"slimscope-runs.{action}", content)
            return {"message": show_html(), "download": file}
        if action == "save-view":
            labels.save_view(text, saved_query(dict(request.query_params or {})), user)
            message = f"The view {text.strip()} is saved for all users."
        elif action == "delete-view":
            labels.delete_view(name, user)
            message = f"The view {name} is deleted."
        else:
            table = query_runs(TableQuery.from_address(request))
            if not (jobs := [row.job for row in table.selected]):
                raise ConfigError("Nothing was done.", "No run is selected.")
            message = carry_out(action, jobs, text, user)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_success(message)}


PAGE = Page("Runs", "runs", build, order=30, section="Runs", key="r")
