"""Weights: where compression acted, and what it made of one tensor, stage by stage.

histograms     what the page's scripts (`assets/scripts/weights`) draw: all histograms of a run as
               one binary, and on demand the profiles of a tensor
selection      what is looked at, as the address names it
charts         map, histogram and perplexity as reports show them
inspect_model  statistics of a model without a run
"""

import gradio as gr

from ui.frame import Page, on_change
from ui.pages.weights import inspect_model
from ui.pages.weights.charts import WeightsView, map_chart, stages_chart, tensor_chart
from ui.pages.weights.selection import AGAINST, OPTIONS, TEXTS, VIEWS
from ui.templates import fragments
from ui.widgets.panel import Panel, page_charts

HTML = fragments("pages/weights/page.html")
LAYERS = Panel("layers", "All layers", height=440, element="heatmap")
TENSOR = Panel("tensor", "One tensor", height=440, element="overlay")
PERPLEXITY = Panel(
    "perplexity",
    "Perplexity by stage",
    "How does perplexity change from stage to stage? Lower is better.",
    280,
)
REPORTED = {LAYERS: map_chart, TENSOR: tensor_chart, PERPLEXITY: stages_chart}
START = (
    "slimscope.module('weights/page').then("
    "(page) => page.start(element, () => trigger('inspected')))"
)


def build() -> None:
    explorer = gr.HTML(
        html_template=HTML.explorer(VIEWS, OPTIONS, AGAINST, TEXTS),
        js_on_load=START,
        apply_default_css=False,
        elem_id="weights-explorer",
    )
    run = gr.Textbox(visible=False)
    computed = inspect_model.build(run)
    computed.then(None, run, None, js="(run) => slimscope.openRun(run)")
    explorer.inspected(None, None, run, js="() => slimscope.openedRun()")
    on_change(None, js="() => { slimscope.changed?.(); }")


PAGE = Page(
    "Weights",
    "weights",
    build,
    order=50,
    section="Explore",
    key="w",
    heading=False,
    charts=page_charts("weights", WeightsView.of_address, REPORTED, "run"),
)
