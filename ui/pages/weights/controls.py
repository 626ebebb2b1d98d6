"""What stands on the Weights page: two cards with one chart each, figures and words below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from gradio.components import Component

from ui.charts.histograms import MOST
from ui.pages.weights.inspect_model import InspectModelPanel, build_newcomer
from ui.pages.weights.selection import LAYERS, ORDERS, VIEWS, WeightsSelection
from ui.widgets.chart import ChartCard, PlotlyView, chart_card
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.explorer import Updates, named_outputs
from ui.widgets.notice import plain

HEIGHT = 440
COST = "What does each step cost, and what does it win back? Lower is better."
CONTROLS = tuple(field.name for field in fields(WeightsSelection))
OF_LAYERS = {  # view -> the controls it has
    "map": ("stage", "stat", "against"),
    "depth": ("stage",),
    "shapes": ("stage", "group", "start"),
}
OF_TENSOR = {
    "overlay": ("show", "y"),
    "mirror": ("show",),
    "magnitude": ("show", "y"),
    "cumulative": ("show",),
    "difference": ("show",),
    "channels": ("show", "side", "measure", "order", "y"),
    "story": (),
}


@dataclass(frozen=True)
class WeightsControls:
    """Every component of the page by name: controls, charts, notes and tables."""

    by_name: dict[str, Any]
    back: gr.Button
    on: gr.Button
    save: gr.Button
    newcomer: InspectModelPanel

    @property
    def controls(self) -> list[Component]:
        """In the order of `WeightsSelection`."""
        return [self.by_name[name] for name in CONTROLS]

    @property
    def outputs(self) -> list[Any]:
        return list(self.by_name.values())

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def named_outputs(self, handler: Callable[..., Updates]) -> Callable[..., list[Any]]:
        """The handler as Gradio calls it."""
        return named_outputs(handler, self.by_name)


def make_parts() -> WeightsControls:
    """Draws the page."""
    made = _controls()
    with gr.Row(elem_classes="bar"):
        made["run"].render()
        made["vs"].render()
        save = gr.Button("Download all statistics", scale=0, min_width=200, elem_id="weights-save")
    newcomer = build_newcomer()
    notice = gr.HTML("", elem_id="weights-notice", js_on_load=None, visible=False)
    with gr.Column(elem_id="weights-charts") as charts:
        with gr.Row(equal_height=True):
            layers = _layers_card(made)
            tensor, back, on = _tensor_card(made)
        with gr.Row(equal_height=False):
            words = _words_card()
            with gr.Column(scale=2, min_width=320) as cost_column:
                cost = _cost_card()
    others = {
        "seen": gr.State(None), "notice": notice, "charts": charts,
        **_named("layers", layers), **_named("tensor", tensor), "words": words,
        "cost": cost_column, **_named("cost", cost),
    }  # fmt: skip
    return WeightsControls({**made, **others}, back, on, save, newcomer)


def _named(name: str, card: ChartCard) -> dict[str, Any]:
    return {f"{name}_chart": card.view, f"{name}_note": card.note, f"{name}_table": card.table}


def _controls() -> dict[str, Component]:
    """Every control, not yet drawn."""
    return {
        "run": _list("Run", "run", min_width=240),
        "vs": _list("Compare with", "vs", min_width=240),
        "tensor": _list("Tensor", "tensor", min_width=140),
        "layers": _segments(LAYERS, "View of all layers", "layers"),
        "stage": _list("Stage", "stage", scale=3, min_width=160),
        "stat": _list("Colour shows", "stat", scale=3, min_width=160),
        "against": _list("Difference to", "against", scale=2, min_width=120),
        "group": _list("Panels", "group", scale=2, min_width=120, visible=False),
        "start": _list("Blocks", "start", scale=2, min_width=120, visible=False),
        "view": _segments(VIEWS, "View of one tensor", "view"),
        "show": _list(
            f"Stages, at most {MOST}", "show", multiselect=True, max_choices=MOST, min_width=400
        ),
        "y": _segments({"linear": "Linear", "log": "Log"}, "Height axis", "y", label=True),
        "side": _segments(
            {"row": "Output", "column": "Input"}, "Channels", "side", label=True, visible=False
        ),
        "measure": _list("Figure", "measure", min_width=140, visible=False),
        "order": _segments(ORDERS, "Order", "order", label=True, visible=False),
    }


def _list(label: str, name: str, **options: Any) -> FreeDropdown:
    return FreeDropdown([], label=label, elem_id=f"weights-{name}", render=False, **options)


def _segments(
    choices: Mapping[str, str], title: str, name: str, *, label: bool = False, visible: bool = True
) -> gr.Radio:
    """Choices side by side, one of them taken; an unseen title is still read aloud."""
    return gr.Radio(
        [(words, value) for value, words in choices.items()],
        label=title,
        elem_id=f"weights-{name}",
        elem_classes=["segmented"] if label else ["segmented", "untitled"],
        visible=visible,
        scale=0 if label else None,
        min_width=150,
        render=False,
    )


def _layers_card(made: Mapping[str, Component]) -> ChartCard:
    view = PlotlyView(
        label="All layers, block by module", height=HEIGHT, elem_id="weights-heatmap", render=False
    )
    below = [made[name] for name in ("stage", "stat", "against", "group", "start")]
    return chart_card("All layers", "", view, [[made["layers"]], below])


def _tensor_card(made: Mapping[str, Component]) -> tuple[ChartCard, gr.Button, gr.Button]:
    back = gr.Button("Back", elem_id="weights-previous", render=False, scale=0, min_width=64)
    on = gr.Button("Next", elem_id="weights-next", render=False, scale=0, min_width=64)
    view = PlotlyView(
        label="Weights of one tensor", height=HEIGHT, elem_id="weights-overlay", render=False
    )
    below = [made[name] for name in ("show", "side", "measure", "order", "y")]
    rows = [[made["view"]], [made["tensor"], back, on], below]
    return chart_card("One tensor", "", view, rows), back, on


def _words_card() -> gr.HTML:
    with gr.Column(scale=5, elem_classes="card", min_width=320):
        plain("<h2>This tensor in words</h2>")
        return gr.HTML("", elem_id="weights-table", js_on_load="slimscope.table(element)")


def _cost_card() -> ChartCard:
    view = PlotlyView(
        label="Perplexity of each stage", height=260, elem_id="weights-perplexity", render=False,
        empty="Perplexity appears here as the stages are measured.",
    )  # fmt: skip
    return chart_card("Perplexity by stage", COST, view)
