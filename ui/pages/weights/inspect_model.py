"""Any model can be looked at without a run: one button queues its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from backend.models.sources import catalogue
from backend.queue.roles import may_not_add
from backend.settings import settings
from backend.store import queries
from jobs import submit
from jobs.weight_statistics.config import NAME
from ui.format import esc
from ui.frame import current_user
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.notice import notice, plain, show_error, show_html

ABOUT = (
    "Statistics of every weight matrix of a model as it is: no text, no forward pass, little "
    "memory. The page shows them block by block."
)


@dataclass(frozen=True)
class InspectModelPanel:
    """The panel that queues statistics of a model."""

    model: FreeDropdown
    compute: gr.Button
    told: gr.HTML


def build_newcomer() -> InspectModelPanel:
    with gr.Accordion("Look at a model without a run", open=False, elem_id="weights-new"):
        plain(f'<p class="question">{esc(ABOUT)}</p>')
        with gr.Row(elem_classes="bar"):
            model = FreeDropdown(
                [], label="Model", elem_id="weights-model", min_width=240, allow_custom_value=True
            )
            compute = gr.Button(
                "Compute statistics", scale=0, min_width=180, elem_id="weights-compute"
            )
        told = notice("weights-told")
    return InspectModelPanel(model, compute, told)


def models_for(run: str) -> list[tuple[str, str]]:
    """What can be looked at: the catalogue, and the model this run has saved."""
    known = [
        (entry.title if entry.ready else f"{entry.title} (not set up)", entry.name)
        for entry in catalogue.entries()
    ]
    saved = [a for a in queries.artifacts(run) if a.kind == "model"] if run else []
    return [
        (f"{run}: the model it saved", str(settings().artifacts / a.path)) for a in saved
    ] + known


def offered(run: str, request: gr.Request) -> tuple[Any, Any, Any]:
    """Model list, button, notice, as they are for this visitor on arrival."""
    choices = models_for(run)
    why = may_not_add(current_user(request))
    told = show_html(f'<p class="quiet">{esc(why)}</p>') if why else show_html("")
    return (
        gr.update(choices=choices, value=choices[0][1] if choices else None),
        gr.update(interactive=not why),
        told,
    )


def compute(model: str | None, request: gr.Request) -> tuple[Any, Any]:
    """Queues statistics of the model: notice, and the run that is to be shown now."""
    try:
        job = submit.submit(NAME, {"model": model or ""}, current_user(request))
    except SlimscopeError as error:
        return show_error(error), gr.skip()
    return show_html(""), job.run
