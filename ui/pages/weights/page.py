"""The page *Weights*: the effect of compression on all layers and on one tensor, stage by stage.

histograms     what the page's scripts (`assets/scripts/weights`) draw: all histograms of a run as
               one binary, and on demand the profiles of a tensor
charts         what is looked at, as the address names it, and the map
story_charts   the other charts as stories show them

Below them, statistics of a model without a run: one button queues them.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
from gradio.events import Dependency

from backend.errors import NotFoundError, SlimscopeError
from backend.queue.permissions import may_not_add
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Artifact
from jobs import submit
from jobs.weight_statistics.kind import NAME
from ui.frame import SILENT_EVENT, Page, current_user, on_change, on_load
from ui.pages.weights.charts import (
    OPTIONS,
    TEXTS,
    VIEWS,
    WeightsSelection,
    WeightsView,
    map_chart,
)
from ui.pages.weights.story_charts import histogram, shown_view
from ui.runs.choices import models
from ui.templates import fragments
from ui.widgets.dropdown import Choices, dropdown
from ui.widgets.html import WIDGETS, notice, plain, show_error, show_html
from ui.widgets.panel import Panel, page_charts

HTML = fragments("pages/weights/page.html")
LAYERS = Panel("layers", "All layers", height=440, element="heatmap")
TENSOR = Panel("tensor", "One tensor", height=440, element="overlay")
BELOW = {  # element of the page -> views that it shows
    "ridges": ("ridges",),
    "more": ("matrix", "joint", "channels", "spectrum"),
    "groups": ("groups",),
}
REPORTED = {LAYERS: map_chart, TENSOR: histogram}
REPORTED |= {
    Panel(name, VIEWS[views[0]] if len(views) == 1 else "View of the tensor"): partial(
        shown_view, views
    )
    for name, views in BELOW.items()
}
START = (
    "slimscope.module('weights/page').then("
    "(page) => page.start(element, () => trigger('inspected')))"
)


def build() -> None:
    explorer = gr.HTML(
        html_template=HTML.explorer(VIEWS, OPTIONS, TEXTS),
        js_on_load=START,
        apply_default_css=False,
        elem_id="weights-explorer",
    )
    run = gr.Textbox(visible=False)
    computed = inspect_model(run)
    computed.then(None, run, None, js="(run) => slimscope.openRun(run)")
    explorer.inspected(None, None, run, js="() => slimscope.openedRun()")
    on_change(None, js="() => { slimscope.changed?.(); }")


def inspect_model(run: gr.Textbox) -> Dependency:
    """Draw the panel; return the event after which the control `run` contains the new run."""
    with gr.Accordion("Inspect a model without a run", open=False, elem_id="weights-new"):
        about = (
            "Statistics of every weight matrix of a model as it is: no text, no forward pass, "
            "little memory. They appear here block by block."
        )
        plain(WIDGETS.chart_note(about))
        with gr.Row(elem_classes="bar"):
            model = dropdown(
                "Model", "weights-model", min_width=240, allow_custom_value=True, render=True
            )
            button = gr.Button(
                "Compute statistics", scale=0, min_width=180, elem_id="weights-compute"
            )
        message = notice("weights-told")
    on_load(open_panel, run, [model, button, message])

    def offer(run: str | None) -> Any:
        return gr.update(choices=models_for(run or ""))

    run.change(offer, run, model, **SILENT_EVENT)
    event: Dependency = button.click(compute, model, [message, run], **SILENT_EVENT)
    return event


def models_for(run: str) -> Choices:
    """The saved model of this run, and the catalog."""
    saved: list[Artifact] = []
    with suppress(NotFoundError):
        saved = [a for a in queries.artifacts(run) if a.kind == "model"] if run else []
    return [(f"{run}: saved model", str(settings().artifacts / a.path)) for a in saved] + models()


def open_panel(run: str, request: gr.Request) -> tuple[Any, Any, Any]:
    """Model list, button and notice for this visitor, on arrival."""
    offered = models_for(run)
    reason = may_not_add(current_user(request))
    return (
        gr.update(choices=offered, value=offered[0][1] if offered else None),
        gr.update(interactive=not reason),
        show_html(HTML.quiet(reason)),
    )


def compute(model: str | None, request: gr.Request) -> tuple[Any, Any]:
    """Queue a run that computes the statistics of the model; return a notice and the run to
    show."""
    try:
        job = submit.submit(NAME, {"model": model or ""}, current_user(request))
    except SlimscopeError as error:
        return show_error(error), gr.skip()
    return show_html(), job.run


PAGE = Page(
    "Weights",
    "weights",
    build,
    order=10,
    section="Weights",
    key="w",
    heading=False,
    charts=page_charts(
        "weights",
        lambda request: WeightsView.at(WeightsSelection.from_address(request)),
        REPORTED,
        "run",
    ),
)
