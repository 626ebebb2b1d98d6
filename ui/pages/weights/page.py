"""Weights: where compression acted, and what it made of one tensor, stage by stage.

selection, data            what is looked at; what is read of it
layer_charts               all layers: map, depth, shapes
tensor                     one tensor: histograms, magnitudes, channels, matrix, spectrum, steps
explanations, shape_text   its statistics in sentences
handlers                   what each event changes
inspect_model              statistics of a model without a run
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from ui.charts.chart import Chart
from ui.charts.histograms import MAX_STAGES
from ui.frame import SILENT_EVENT, Page
from ui.pages.weights import handlers, inspect_model
from ui.pages.weights.data import TensorView
from ui.pages.weights.handlers import (
    LAYER_CONTROLS,
    LAYERS,
    PERPLEXITY,
    TENSOR,
    TENSOR_CONTROLS,
    stages_chart,
)
from ui.pages.weights.layer_charts import layers_chart
from ui.pages.weights.selection import (
    CELLS,
    FLOWS,
    LAYER_VIEWS,
    LOOKS,
    ORDERS,
    SCALES,
    TENSOR_VIEWS,
    TOPICS,
    WeightsSelection,
)
from ui.pages.weights.tensor.charts import tensor_chart
from ui.widgets.download import Download
from ui.widgets.dropdown import dropdown, segmented
from ui.widgets.explorer import Explorer, chart_at, page_state
from ui.widgets.notice import notice
from ui.widgets.panel import Outputs, page_charts

SIDES = {"row": "Output", "column": "Input"}
SMALL: dict[str, Any] = {"titled": True, "scale": 0, "min_width": 150}  # a radio below a view


def build() -> None:
    page = Outputs(_controls())
    with gr.Row(elem_classes="bar"):
        page["run"].render()
        page["vs"].render()
        save = gr.Button("Download all statistics", scale=0, min_width=200, elem_id="weights-save")
    computed = inspect_model.build(page["run"])
    page["notice"] = notice("weights-notice")
    back, forward = _button("Back", "previous"), _button("Next", "next")
    with gr.Column(elem_id="weights-charts") as page["charts"]:
        with gr.Row(equal_height=True):
            below = [page[name] for name in LAYER_CONTROLS]
            page |= LAYERS.build("weights", [[page["layers"]], below])
            below = [page[name] for name in TENSOR_CONTROLS]
            page |= TENSOR.build(
                "weights",
                [[page["topic"]], [page["view"]], [page["tensor"], back, forward], below],
            )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, elem_classes="card", min_width=320):
                page["statistics"] = gr.HTML(
                    "", elem_id="weights-table", js_on_load="slimscope.table(element)"
                )
            with gr.Column(scale=2, min_width=320) as page["perplexity"]:
                page |= PERPLEXITY.build("weights")
    page["seen"] = page_state()
    explorer = Explorer(page, WeightsSelection, TensorView.at)
    explorer.on_load(handlers.open_page)
    explorer.on_point("layers_chart", "tensor", handlers.pick_tensor)
    explorer.on_point("tensor_chart", "spot", handlers.zoom)
    explorer.on_point("tensor_chart", "stage", handlers.change_layers, "stop")
    explorer.on_selection(computed.then, handlers.change_run)
    _wire(explorer, back, forward)
    download = Download()
    save.click(handlers.all_statistics, page["run"], download, **SILENT_EVENT)


def _wire(
    explorer: Explorer[WeightsSelection, TensorView], back: gr.Button, forward: gr.Button
) -> None:
    for name in ("run", "vs"):
        explorer.on_selection(explorer.event(name), handlers.change_run)
    for name in ("layers", *LAYER_CONTROLS):
        explorer.on(explorer.event(name), handlers.change_layers)
    for name in ("view", *TENSOR_CONTROLS):
        explorer.on_selection(explorer.event(name), handlers.change_tensor)
    explorer.on_selection(explorer.event("topic"), handlers.change_topic)
    explorer.on(explorer.event("tensor"), handlers.choose_tensor)
    explorer.on(back.click, partial(handlers.choose_tensor, by=-1))
    explorer.on(forward.click, partial(handlers.choose_tensor, by=1))
    explorer.on_change(handlers.refresh)


def _controls() -> dict[str, Component]:
    """Every control by its name in the address, not yet drawn."""
    return {
        "run": dropdown("Run", "weights-run", min_width=240),
        "vs": dropdown("Compare with", "weights-vs", min_width=240),
        "tensor": dropdown("Tensor", "weights-tensor", min_width=140),
        "layers": segmented(LAYER_VIEWS, "View of all layers", "weights-layers", min_width=150),
        "stage": dropdown("Stage", "weights-stage", scale=3, min_width=160),
        "stat": dropdown("Colour", "weights-stat", scale=3, min_width=160),
        "against": dropdown("Difference to", "weights-against", scale=2, min_width=120),
        "flow": segmented(FLOWS, "Figure", "weights-flow", visible=False, **SMALL),
        "group": dropdown("Panels", "weights-group", scale=2, min_width=120, visible=False),
        "start": dropdown("Blocks", "weights-start", scale=2, min_width=120, visible=False),
        "topic": segmented(
            {topic: topic.capitalize() for topic in TOPICS}, "What is looked at", "weights-topic",
            min_width=150,
        ),
        "view": segmented(TENSOR_VIEWS, "View of one tensor", "weights-view", min_width=150),
        "show": dropdown(f"Stages, at most {MAX_STAGES}", "weights-show", multiselect=True,
                         max_choices=MAX_STAGES, min_width=400),
        "y": segmented(SCALES, "Height axis", "weights-y", **SMALL),
        "side": segmented(SIDES, "Channels", "weights-side", visible=False, **SMALL),
        "measure": dropdown("Figure", "weights-measure", min_width=140, visible=False),
        "order": segmented(ORDERS, "Order", "weights-order", visible=False, **SMALL),
        "spot": dropdown("Part", "weights-spot", min_width=140, visible=False),
        "look": segmented(LOOKS, "Drawn as", "weights-look", visible=False, **SMALL),
        "cells": segmented(CELLS, "Figure of the cells", "weights-cells", visible=False, **SMALL),
    }  # fmt: skip


def _button(label: str, name: str) -> gr.Button:
    return gr.Button(label, elem_id=f"weights-{name}", render=False, scale=0, min_width=64)


def _chart(draw: Callable[[TensorView], Chart]) -> Callable[[gr.Request], Chart]:
    return chart_at(WeightsSelection, TensorView.at, draw)


PAGE = Page(
    "Weights", "weights", build, order=50, section="Explore", key="w",
    charts=page_charts("weights", {
        LAYERS: _chart(layers_chart), TENSOR: _chart(tensor_chart),
        PERPLEXITY: _chart(stages_chart),
    }, "run"),
)  # fmt: skip
