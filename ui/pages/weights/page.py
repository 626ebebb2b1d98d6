"""The page *Weights*: the effect of compression on all layers and on one tensor, stage by stage.

histograms     what the page's scripts (`assets/scripts/weights`) draw: all histograms of a run as
               one binary, and on demand the profiles of a tensor
charts         what is looked at, as the address names it, and the map
story_charts   the other charts as stories show them
"""

from functools import partial

import gradio as gr

from ui.frame import Page, on_change
from ui.pages.weights.charts import (
    OPTIONS,
    TEXTS,
    VIEWS,
    WeightsSelection,
    WeightsView,
    map_chart,
)
from ui.pages.weights.story_charts import histogram, shown_view
from ui.templates import fragments
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
START = "slimscope.module('weights/page').then((page) => page.start(element))"


def build() -> None:
    gr.HTML(
        html_template=HTML.explorer(VIEWS, OPTIONS, TEXTS),
        js_on_load=START,
        apply_default_css=False,
        elem_id="weights-explorer",
    )
    on_change(None, js="() => { slimscope.changed?.(); }")


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
