"""Weights: where compression acted, and what it made of one tensor, stage by stage.

selection, data            what is looked at; what is read of it
layer_charts               all layers: map, depth, shapes
tensor_charts              one tensor: histograms, magnitudes, channels, steps
explanations, shape_text   its statistics in sentences
handlers                   what each event changes
inspect_model              statistics of a model without a run
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

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
)
from ui.pages.weights.selection import (
    LAYER_VIEWS,
    ORDERS,
    SCALES,
    TENSOR_VIEWS,
    WeightsSelection,
)
from ui.widgets.download import Download
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.explorer import Explorer, segmented
from ui.widgets.notice import notice
from ui.widgets.panel import Outputs

SIDES = {"row": "Output", "column": "Input"}


def build() -> None:
    page = Outputs(_controls())
    with gr.Row(elem_classes="bar"):
        page["run"].render()
        page["vs"].render()
        save = gr.Button("Download all statistics", scale=0, min_width=200, elem_id="weights-save")
    new = inspect_model.build()
    page["notice"] = notice("weights-notice")
    back, forward = _button("Back", "previous"), _button("Next", "next")
    with gr.Column(elem_id="weights-charts") as page["charts"]:
        with gr.Row(equal_height=True):
            below = [page[name] for name in LAYER_CONTROLS]
            page |= LAYERS.build("weights", [[page["layers"]], below])
            below = [page[name] for name in TENSOR_CONTROLS]
            page |= TENSOR.build(
                "weights", [[page["view"]], [page["tensor"], back, forward], below]
            )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, elem_classes="card", min_width=320):
                page["statistics"] = gr.HTML(
                    "", elem_id="weights-table", js_on_load="slimscope.table(element)"
                )
            with gr.Column(scale=2, min_width=320) as page["perplexity"]:
                page |= PERPLEXITY.build("weights")
    page["seen"] = gr.State(None)
    explorer = Explorer(page, WeightsSelection, TensorView.at)
    explorer.on_load(handlers.open_page)
    explorer.on_point("layers_chart", "tensor", handlers.pick_tensor)
    explorer.on_selection(new.wire(page["run"]).then, handlers.change_run)
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
    explorer.on(explorer.event("tensor"), handlers.choose_tensor)
    explorer.on(back.click, handlers.previous_tensor)
    explorer.on(forward.click, handlers.next_tensor)
    explorer.on_change(handlers.refresh)


def _controls() -> dict[str, Component]:
    """Every control by its name in the address, not yet drawn."""
    return {
        "run": _dropdown("Run", "run", min_width=240),
        "vs": _dropdown("Compare with", "vs", min_width=240),
        "tensor": _dropdown("Tensor", "tensor", min_width=140),
        "layers": _radio(LAYER_VIEWS, "View of all layers", "layers"),
        "stage": _dropdown("Stage", "stage", scale=3, min_width=160),
        "stat": _dropdown("Colour", "stat", scale=3, min_width=160),
        "against": _dropdown("Difference to", "against", scale=2, min_width=120),
        "group": _dropdown("Panels", "group", scale=2, min_width=120, visible=False),
        "start": _dropdown("Blocks", "start", scale=2, min_width=120, visible=False),
        "view": _radio(TENSOR_VIEWS, "View of one tensor", "view"),
        "show": _dropdown(f"Stages, at most {MAX_STAGES}", "show", multiselect=True,
                          max_choices=MAX_STAGES, min_width=400),
        "y": _radio(SCALES, "Height axis", "y", titled=True, scale=0),
        "side": _radio(SIDES, "Channels", "side", titled=True, scale=0, visible=False),
        "measure": _dropdown("Figure", "measure", min_width=140, visible=False),
        "order": _radio(ORDERS, "Order", "order", titled=True, scale=0, visible=False),
    }  # fmt: skip


def _dropdown(label: str, name: str, **options: Any) -> FreeDropdown:
    return FreeDropdown([], label=label, elem_id=f"weights-{name}", render=False, **options)


def _radio(labels: dict[str, str], title: str, name: str, **options: Any) -> gr.Radio:
    return segmented(labels, title, f"weights-{name}", min_width=150, **options)


def _button(label: str, name: str) -> gr.Button:
    return gr.Button(label, elem_id=f"weights-{name}", render=False, scale=0, min_width=64)


PAGE = Page("Weights", "weights", build, order=50, key="w")
