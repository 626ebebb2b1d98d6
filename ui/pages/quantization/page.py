"""Quantization: the grid, what training moved inside of it, and where rounding hurts."""

from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from jobs.dlqat import kind as dlqat
from ui.frame import Page
from ui.pages.quantization import panels
from ui.pages.quantization.explorer_page import ExplorerPage, profile_mark
from ui.pages.quantization.group_map import FIGURES
from ui.pages.quantization.panels import CHARTS, ENERGY, HTML, MAGNITUDES, MAP, USAGE, WEIGHTS
from ui.pages.quantization.selection import MAGNITUDE, QuantSelection, QuantView, quant_of
from ui.widgets.dropdown import choices, dropdown
from ui.widgets.explorer import Explorer, page_state
from ui.widgets.html import notice, plain
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

BUTTONS = {
    "worst": "Worst",
    "back": "Previous",
    "on": "Next",
    "steps": "Next snapshot",
    "play": "Play",
}


def change_run(selection: QuantSelection) -> Updates:
    return SHARED.refresh_all(replace(selection, step="", group=""), selection)


def refresh(seen: Any, selection: QuantSelection) -> Updates:
    """A page at the newest snapshot follows the training."""
    newest = seen["mark"][-1:] if seen and isinstance(seen["mark"], list) else ()
    follows = any(
        isinstance(steps, dict) and selection.step == str(steps.get(selection.stage))
        for steps in newest
    )
    return SHARED.refresh(seen, selection, replace(selection, step="") if follows else selection)


def choose_tensor(view: QuantView) -> Updates:
    view = view.select(group="")
    head = {"head": panels.head_html(view), "tensor": view.selection.tensor}
    return updates(head, _tensor(view))


def change_map(view: QuantView) -> Updates:
    return updates({"step": int(view.selection.step)}, _draw(view, panels.MAP))


def preview_step(view: QuantView) -> Updates:
    """A slider in motion is not moved, or arrow keys would never reach the next snapshot."""
    return _draw(view, panels.MAP)


def next_step(view: QuantView) -> Updates:
    steps = view.snapshot_steps
    step = steps[(steps.index(int(view.selection.step)) + 1) % len(steps)]
    return updates({"step": step}, _draw(view.select(step=str(step)), panels.MAP))


def choose_group(view: QuantView) -> Updates:
    row, group = view.group
    return updates({"group": f"{row},{group}"}, _draw(view, panels.WEIGHTS))


def move_group(view: QuantView, by: int) -> Updates:
    view = view.moved(by)
    return updates(choose_group(view), _draw(view, panels.MAP))


def worst_group(view: QuantView) -> Updates:
    return move_group(view.select(group=""), 0)


def draw(view: QuantView) -> Updates:
    return updates({"head": panels.head_html(view)}, _draw(view, panels.MAGNITUDES), _tensor(view))


def mark(run: str) -> list[Any]:
    """With the step of the last snapshot of each stage."""
    quant = quant_of(run)
    lasts = {stage: quant.steps[stage, MAGNITUDE][-1] for stage in quant.stages} if quant else {}
    return [*profile_mark(run), lasts]


def offers(view: QuantView) -> dict[str, dict[str, Any]]:
    quant, steps = view.quant, view.snapshot_steps
    return {
        "stage": {"choices": [(quant.labels[s], s) for s in quant.stages]},
        "tensor": {"choices": choices(quant.tensors)},
        "figure": {"choices": [(figure.label, name) for name, figure in FIGURES.items()]},
        "step": {"minimum": steps[0], "maximum": max(steps[-1], 1)},
        "group": {},
    }


def _tensor(view: QuantView) -> Updates:
    return updates(_draw(view, panels.MAP, panels.USAGE, panels.ENERGY), choose_group(view))


def _draw(view: QuantView, *chosen: Panel) -> Updates:
    return updates(*(panel.show(panels.CHARTS[panel](view)) for panel in chosen))


SHARED = ExplorerPage(
    QuantSelection,
    QuantView.at,
    mark,
    offers,
    draw,
    profile=MAGNITUDE,
    kind=dlqat.NAME,
    no_run="No run has trained inside a quantization grid yet.",
    lacks="recorded no groups",
    later="They appear here when training begins.",
)


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "quant-run", min_width=240),
        stage=dropdown("Stage", "quant-stage", min_width=200),
        tensor=dropdown("Tensor", "quant-tensor"),
        figure=dropdown("Color", "quant-figure"),
        step=gr.Slider(
            0, 1, step=1, label="Training step", elem_id="quant-step", min_width=200, render=False
        ),
        group=gr.Textbox(visible=False, elem_id="quant-group", render=False),
    )
    buttons = {
        name: gr.Button(
            label,
            elem_id=f"quant-{name}-button",
            scale=0,
            min_width=max(88, 10 * len(label)),  # three short ones fit beside each other on a phone
            render=False,
        )
        for name, label in BUTTONS.items()
    }
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


def _wire(explorer: Explorer[QuantSelection, QuantView], buttons: dict[str, gr.Button]) -> None:
    explorer.on_load(SHARED.open)
    explorer.on_point("map_chart", "group", choose_group)
    for name in ("run", "stage"):
        explorer.on_selection(explorer.event(name), change_run)
    explorer.on(explorer.event("tensor"), choose_tensor)
    explorer.on(explorer.event("figure"), change_map)
    explorer.on(explorer.event("step"), preview_step)
    explorer.on(explorer.event("step", "release"), change_map)
    explorer.on(buttons["worst"].click, worst_group)
    explorer.on(buttons["back"].click, partial(move_group, by=-1))
    explorer.on(buttons["on"].click, partial(move_group, by=1))
    explorer.on(buttons["steps"].click, next_step)
    explorer.on_point("energy_chart", "tensor", choose_tensor)
    buttons["play"].click(
        None, None, None, js="() => slimscope.play('quant-play-button', 'quant-steps-button')"
    )
    explorer.on_change(refresh)


PAGE = Page(
    "Quantization",
    "quantization",
    build,
    order=60,
    section="Explore",
    key="q",
    charts=page_charts("quant", SHARED.at, CHARTS, "run"),
)
