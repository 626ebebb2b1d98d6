"""Statistics of a model without a run: one button queues them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from backend.errors import SlimscopeError
from backend.models.sources import catalogue
from backend.queue.roles import may_not_add
from backend.settings import settings
from backend.store import queries
from jobs import submit
from jobs.weight_statistics.config import NAME
from ui.frame import SILENT_EVENT, current_user, on_load
from ui.templates import fragments
from ui.widgets.dropdown import Choices, FreeDropdown, dropdown
from ui.widgets.html import WIDGETS
from ui.widgets.notice import notice, plain, show_error, show_html

HTML = fragments("pages/weights/page.html")
ABOUT = (
    "Statistics of every weight matrix of a model as it is: no text, no forward pass, little "
    "memory. They appear here block by block."
)


@dataclass(frozen=True)
class InspectModelPanel:
    """The panel that queues statistics of a model."""

    model: FreeDropdown
    compute: gr.Button
    notice: gr.HTML

    def wire(self, run: Component) -> Dependency:
        """The events of the panel, given the control that holds the run. Returns the event after
        which it holds the new run."""
        on_load(open_panel, run, [self.model, self.compute, self.notice])
        run.change(update_models, run, self.model, **SILENT_EVENT)  # type: ignore[attr-defined]
        event: Dependency = self.compute.click(
            compute, self.model, [self.notice, run], **SILENT_EVENT
        )
        return event


def build() -> InspectModelPanel:
    with gr.Accordion("Inspect a model without a run", open=False, elem_id="weights-new"):
        plain(WIDGETS.chart_note(ABOUT))
        with gr.Row(elem_classes="bar"):
            model = dropdown(
                "Model", "weights-model", min_width=240, allow_custom_value=True, render=True
            )
            compute = gr.Button(
                "Compute statistics", scale=0, min_width=180, elem_id="weights-compute"
            )
        return InspectModelPanel(model, compute, notice("weights-told"))


def models_for(run: str) -> Choices:
    """The catalogue, and the model this run has saved."""
    catalogued = [
        (entry.title if entry.ready else f"{entry.title} (not set up)", entry.name)
        for entry in catalogue.entries()
    ]
    saved = [a for a in queries.artifacts(run) if a.kind == "model"] if run else []
    folders = [(f"{run}: saved model", str(settings().artifacts / a.path)) for a in saved]
    return folders + catalogued


def update_models(run: str | None) -> Any:
    return gr.update(choices=models_for(run or ""))


def open_panel(run: str, request: gr.Request) -> tuple[Any, Any, Any]:
    """Model list, button and notice, as they are for this visitor on arrival."""
    models = models_for(run)
    reason = may_not_add(current_user(request))
    return (
        gr.update(choices=models, value=models[0][1] if models else None),
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
