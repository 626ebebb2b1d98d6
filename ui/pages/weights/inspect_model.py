"""Statistics of a model without a run: one button queues them."""

from contextlib import suppress
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.permissions import may_not_add
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Artifact
from jobs import submit
from jobs.weight_statistics.kind import NAME
from ui.frame import SILENT_EVENT, current_user, on_load
from ui.runs.choices import models
from ui.templates import fragments
from ui.widgets.dropdown import Choices, dropdown
from ui.widgets.html import WIDGETS, notice, plain, show_error, show_html

HTML = fragments("pages/weights/page.html")
ABOUT = (
    "Statistics of every weight matrix of a model as it is: no text, no forward pass, little "
    "memory. They appear here block by block."
)


def build(run: Component) -> Dependency:
    """Draws the panel; returns the event after which the control `run` holds the new run."""
    with gr.Accordion("Inspect a model without a run", open=False, elem_id="weights-new"):
        plain(WIDGETS.chart_note(ABOUT))
        with gr.Row(elem_classes="bar"):
            model = dropdown(
                "Model", "weights-model", min_width=240, allow_custom_value=True, render=True
            )
            button = gr.Button(
                "Compute statistics", scale=0, min_width=180, elem_id="weights-compute"
            )
        message = notice("weights-told")
    on_load(open_panel, run, [model, button, message])
    run.change(update_models, run, model, **SILENT_EVENT)  # type: ignore[attr-defined]
    event: Dependency = button.click(compute, model, [message, run], **SILENT_EVENT)
    return event


def models_for(run: str) -> Choices:
    """The model this run has saved, and the catalogue."""
    saved: list[Artifact] = []
    with suppress(NotFoundError):
        saved = [a for a in queries.artifacts(run) if a.kind == "model"] if run else []
    return [(f"{run}: saved model", str(settings().artifacts / a.path)) for a in saved] + models()


def update_models(run: str | None) -> Any:
    return gr.update(choices=models_for(run or ""))


def open_panel(run: str, request: gr.Request) -> tuple[Any, Any, Any]:
    """Model list, button and notice, as they are for this visitor on arrival."""
    offered = models_for(run)
    reason = may_not_add(current_user(request))
    return (
        gr.update(choices=offered, value=offered[0][1] if offered else None),
        gr.update(interactive=not reason),
        show_html(HTML.quiet(reason)),
    )


def compute(model: str | None, request: gr.Request) -> tuple[Any, Any]:
    """Queues statistics of the model: notice, and the run that is to be shown now."""
    try:
        job = submit.submit(NAME, {"model": model or ""}, current_user(request))
    except SlimscopeError as error:
        return show_error(error), gr.skip()
    return show_html(), job.run
