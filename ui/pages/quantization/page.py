"""Quantisation: the grid, what training moved inside of it, and where rounding hurts."""

from functools import partial

import gradio as gr

from ui.frame import Page
from ui.pages.quantization import handlers
from ui.pages.quantization.panels import CHARTS, ENERGY, HTML, MAGNITUDES, MAP, USAGE, WEIGHTS
from ui.pages.quantization.selection import QuantSelection, QuantView
from ui.widgets.dropdown import dropdown
from ui.widgets.explorer import Explorer, page_state
from ui.widgets.notice import notice, plain
from ui.widgets.panel import Outputs, page_charts

BUTTONS = {
    "worst": "Worst",
    "back": "Previous",
    "on": "Next",
    "steps": "Next snapshot",
    "play": "Play",
}
PLAY = "() => slimscope.play('quant-play-button', 'quant-steps-button')"


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "quant-run", min_width=240),
        stage=dropdown("Stage", "quant-stage", min_width=200),
        tensor=dropdown("Tensor", "quant-tensor"),
        figure=dropdown("Colour", "quant-figure"),
        step=gr.Slider(
            0, 1, step=1, label="Training step", elem_id="quant-step", min_width=200, render=False
        ),
        group=gr.Textbox(visible=False, elem_id="quant-group", render=False),
    )
    buttons = {name: _button(name, label) for name, label in BUTTONS.items()}
    with gr.Row(elem_classes="bar"):
        page["run"].render()
        page["stage"].render()
    page["head"] = plain(elem_id="quant-head")
    page["notice"] = notice("quant-notice")
    with gr.Column(elem_id="quant-charts") as page["charts"]:
        plain(HTML.part("The grid, and where it hurts"))
        with gr.Row(equal_height=True):
            page |= WEIGHTS.build("quant", [[buttons[name] for name in ("worst", "back", "on")]])
            page |= USAGE.build("quant")
            page |= ENERGY.build("quant")
        plain(HTML.part("What training moved"))
        with gr.Row(equal_height=True):
            steps = [page["step"], buttons["steps"], buttons["play"]]
            page |= MAP.build("quant", [[page["tensor"], page["figure"]], steps])
            page |= MAGNITUDES.build("quant")
    page["group"].render()
    page["seen"] = page_state()
    _wire(Explorer(page, QuantSelection, QuantView.at), buttons)


def _button(name: str, label: str) -> gr.Button:
    width = max(88, 10 * len(label))  # three short ones fit beside each other on a phone
    return gr.Button(label, elem_id=f"quant-{name}-button", scale=0, min_width=width, render=False)


def _wire(explorer: Explorer[QuantSelection, QuantView], buttons: dict[str, gr.Button]) -> None:
    explorer.on_load(handlers.SHARED.open)
    explorer.on_point("map_chart", "group", handlers.choose_group)
    for name in ("run", "stage"):
        explorer.on_selection(explorer.event(name), handlers.change_run)
    explorer.on(explorer.event("tensor"), handlers.choose_tensor)
    explorer.on(explorer.event("figure"), handlers.change_map)
    explorer.on(explorer.event("step"), handlers.preview_step)
    explorer.on(explorer.event("step", "release"), handlers.change_map)
    explorer.on(buttons["worst"].click, handlers.worst_group)
    explorer.on(buttons["back"].click, partial(handlers.move_group, by=-1))
    explorer.on(buttons["on"].click, partial(handlers.move_group, by=1))
    explorer.on(buttons["steps"].click, handlers.next_step)
    explorer.on_point("energy_chart", "tensor", handlers.choose_tensor)
    buttons["play"].click(None, None, None, js=PLAY)
    explorer.on_change(handlers.refresh)


PAGE = Page(
    "Quantisation",
    "quantization",
    build,
    order=60,
    section="Explore",
    key="q",
    charts=page_charts("quant", handlers.SHARED.at, CHARTS, "run"),
)
