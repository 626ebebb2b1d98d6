"""Quant: training inside the grid as it goes, layer by layer, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from backend.store import queries
from backend.store.states import ACTIVE
from ui.format import href
from ui.frame import SILENT_EVENT, Page, on_change, on_load, query, url_sync
from ui.pages.quantization import views
from ui.pages.quantization.charts import FIGURES
from ui.pages.quantization.selection import CURVES, MAGNITUDE, QuantSelection, QuantView
from ui.pages.quantization.views import View
from ui.widgets.chart import ChartCard, PlotlyView, chart_card
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.empty_state import empty_state
from ui.widgets.explorer import PICKED, Updates, named_outputs, run_choice
from ui.widgets.html import empty
from ui.widgets.notice import plain

HEIGHT, LOW = 400, 220
LATEST: dict[str, Any] = {"trigger_mode": "always_last", **SILENT_EVENT}
CONTROLS = tuple(field.name for field in fields(QuantSelection))
CARDS = {
    "curve": views.curve_view,
    "layers": views.layers_view,
    "map": views.map_view,
    "weights": views.weights_view,
    "history": views.history_view,
    "usage": views.usage_view,
}
NO_RUN = "No run has trained inside a quantisation grid yet."


# what stands on the page --------------------------------------------------------------------------


def make_controls() -> dict[str, Component]:
    """Every control, not yet drawn, by name and in the order of `QuantSelection`."""
    options: dict[str, Any] = {"render": False}
    return {
        "run": FreeDropdown([], label="Run", elem_id="quant-run", min_width=240, **options),
        "stage": FreeDropdown([], label="Stage", elem_id="quant-stage", min_width=200, **options),
        "curve": gr.Radio(
            [(words, value) for value, words in CURVES.items()], label="Curve",
            elem_id="quant-curve", elem_classes=["segmented", "untitled"], **options,
        ),
        "tensor": FreeDropdown([], label="Tensor", elem_id="quant-tensor", **options),
        "figure": FreeDropdown([], label="Colour shows", elem_id="quant-figure", **options),
        "step": gr.Slider(
            0, 1, step=1, label="Step of training", elem_id="quant-step", min_width=200, **options
        ),
        "group": gr.Textbox(visible=False, elem_id="quant-group", **options),
    }  # fmt: skip


def build() -> None:
    made = make_controls()
    with gr.Row(elem_classes="bar"):
        made["run"].render()
        made["stage"].render()
    head, notice = plain(elem_id="quant-head"), plain(visible=False, elem_id="quant-notice")
    with gr.Column(elem_id="quant-charts") as charts:
        with gr.Row(equal_height=True):
            cards = {
                "curve": _card("Training", "curve", [[made["curve"]]]),
                "layers": _card("All layers", "layers"),
            }
        buttons = {name: _button(name, words) for name, words in BUTTONS.items()}
        with gr.Row(equal_height=True):
            below = [[made["tensor"], made["figure"]], [made["step"], buttons["steps"]]]
            cards["map"] = _card("Groups of one tensor", "map", below)
            with gr.Column(min_width=320):
                with gr.Column(elem_classes="card"):
                    plain("<h2>One group</h2>")
                    with gr.Row(elem_classes="card-controls"):
                        for name in ("worst", "back", "on"):
                            buttons[name].render()
                    group = gr.HTML("", elem_id="quant-one", js_on_load="slimscope.table(element)")
                cards["weights"] = _card("Its weights", "weights", height=LOW)
        with gr.Row(equal_height=True):
            cards["history"] = _card("The group over training", "history")
            cards["usage"] = _card("Codes of the tensor", "usage")
    made["group"].render()
    outputs = {**made, "head": head, "notice": notice, "charts": charts, "one": group,
               "seen": gr.State(None), **{f"{n}_{p}": getattr(c, at) for n, c in cards.items()
                                          for p, at in PARTS.items()}}  # fmt: skip
    wire(outputs, cards, buttons)


BUTTONS = {"worst": "Worst", "back": "Previous", "on": "Next", "steps": "Next picture"}
PARTS = {"chart": "view", "note": "note", "table": "table"}


def _button(name: str, words: str) -> gr.Button:
    width = max(88, 10 * len(words))  # three short ones fit beside each other on a phone
    return gr.Button(words, elem_id=f"quant-{name}-button", scale=0, min_width=width, render=False)


def _card(
    title: str, name: str, controls: Sequence[Sequence[Component]] = (), height: int = HEIGHT
) -> ChartCard:
    view = PlotlyView(label=title, height=height, elem_id=f"quant-{name}-chart", render=False)
    return chart_card(title, "", view, controls)


def wire(
    outputs: dict[str, Any], cards: dict[str, ChartCard], buttons: dict[str, gr.Button]
) -> None:
    """What happens when."""
    controls = [outputs[name] for name in CONTROLS]

    def load(request: gr.Request) -> list[Any]:
        return named_outputs(opened, outputs)(request)

    def on(event: Any, handler: Callable[..., Updates]) -> Any:
        return event(named_outputs(handler, outputs), controls, [*outputs.values()], **LATEST)

    of_layer = cards["layers"].view.select(None, outputs["tensor"], outputs["tensor"], js=PICKED)
    of_group = cards["map"].view.select(None, outputs["group"], outputs["group"], js=PICKED)
    events = [on_load(load, None, [*outputs.values()])]
    events += [on(of_layer.then, tensor_chosen), on(of_group.then, group_chosen)]
    events += [on(outputs["run"].input, run_chosen), on(outputs["stage"].input, run_chosen)]
    events += [on(outputs["tensor"].input, tensor_chosen)]
    events += [on(outputs["curve"].input, curve_chosen)]
    events += [on(outputs["figure"].input, map_chosen), on(outputs["step"].input, step_moved)]
    events += [on(outputs["step"].release, map_chosen)]
    events += [on(buttons["back"].click, worse), on(buttons["on"].click, less_bad)]
    events += [on(buttons["worst"].click, worst), on(buttons["steps"].click, next_step)]
    for event in events:
        url_sync(event, **{name: outputs[name] for name in CONTROLS})
    on_change(named_outputs(refreshed, outputs), [outputs["seen"], *controls], [*outputs.values()])


# events -------------------------------------------------------------------------------------------


def choice_of(values: Sequence[Any]) -> QuantSelection:
    """The choice the controls stand for."""
    return QuantSelection(*("" if value is None else str(value) for value in values))


def opened(request: gr.Request) -> Updates:
    return everything(
        QuantSelection(**{name: query(request, name) for name in CONTROLS}), QuantSelection()
    )


def run_chosen(*values: Any) -> Updates:
    """Another run or stage."""
    asked = choice_of(values)
    return everything(replace(asked, step="", group=""), asked)


def refreshed(seen: Any, *values: Any) -> Updates:
    """The database has moved on: nothing of a run that has ended, its curves while it works, and
    all of the page when it has recorded more. Who looks at the newest picture sees the next."""
    asked = choice_of(values)
    looked = QuantView.at(asked)
    if looked is None or not seen:
        return everything(asked, asked)
    now = seen_of(looked)
    if now["mark"] == seen["mark"]:
        working = now["mark"][0] in ACTIVE
        return {**_drawn(looked, "curve"), **_drawn(looked, "layers")} if working else {}
    follows = asked.step == str(seen["last"])
    return everything(replace(asked, step="") if follows else asked, asked, seen)


def seen_of(looked: QuantView) -> dict[str, Any]:
    """What tells whether there is more to see than was shown."""
    run, choice = looked.choice.run, looked.choice
    return {
        "mark": [queries.job(run).state, *(queries.profiles_mark(run) or ())],
        "last": looked.quant.steps[choice.stage, MAGNITUDE][-1],
    }


def curve_chosen(*values: Any) -> Updates:
    looked = QuantView.at(choice_of(values))
    return _drawn(looked, "curve") if looked else {}


def tensor_chosen(*values: Any) -> Updates:
    looked = QuantView.at(replace(choice_of(values), group=""))
    return {**_of_tensor(looked), **_drawn(looked, "layers")} if looked else {}


def map_chosen(*values: Any) -> Updates:
    """Another figure, or a slider that was let go: it goes to the picture that is shown."""
    looked = QuantView.at(choice_of(values))
    return {"step": int(looked.choice.step), **_drawn(looked, "map")} if looked else {}


def step_moved(*values: Any) -> Updates:
    """A slider on its way. It is left alone: arrow keys would never get it to the next picture."""
    looked = QuantView.at(choice_of(values))
    return _drawn(looked, "map") if looked else {}


def next_step(*values: Any) -> Updates:
    """The next picture of training; behind the last the first again."""
    looked = QuantView.at(choice_of(values))
    if looked is None:
        return {}
    steps = looked.quant.steps[looked.choice.stage, MAGNITUDE]
    place = (steps.index(int(looked.choice.step)) + 1) % len(steps)
    moved = replace(looked, choice=replace(looked.choice, step=str(steps[place])))
    return {"step": steps[place], **_drawn(moved, "map")}


def group_chosen(*values: Any) -> Updates:
    looked = QuantView.at(choice_of(values))
    return _of_group(looked) if looked else {}


def worse(*values: Any) -> Updates:
    return _moved(values, -1)


def less_bad(*values: Any) -> Updates:
    return _moved(values, 1)


def worst(*values: Any) -> Updates:
    return _moved([*values[:-1], ""], 0)


def _moved(values: Sequence[Any], by: int) -> Updates:
    looked = QuantView.at(choice_of(values))
    if looked is None:
        return {}
    looked = looked.moved(by)
    return {"group": looked.choice.group, **_of_group(looked), **_drawn(looked, "map")}


# what is shown ------------------------------------------------------------------------------------


def everything(asked: QuantSelection, before: QuantSelection, seen: Any = None) -> Updates:
    """All of the page. Lists and values that are right already are left in the person's hand.

    Args:
        seen: what was shown last.
    """
    runs = queries.runs_with_profile(MAGNITUDE)
    asked = asked if asked.run else replace(asked, run=runs[0].run if runs else "")
    looked = QuantView.at(asked)
    named = [run_choice(job) for job in runs]
    if looked is None:
        return {
            "notice": gr.update(value=_why_nothing(asked.run), visible=True), "seen": None,
            "charts": gr.update(visible=False), "head": "", "run": gr.update(choices=named),
        }  # fmt: skip
    offered = _offered(looked, named)
    return {
        "notice": gr.update(visible=False),
        "charts": gr.update(visible=True),
        "head": views.head_html(looked),
        "seen": {**seen_of(looked), "offered": offered},
        **_controls(looked.choice, before, offered, seen["offered"] if seen else {}),
        **_drawn(looked, "curve"),
        **_drawn(looked, "layers"),
        **_of_tensor(looked),
    }


def _offered(looked: QuantView, runs: list[tuple[str, str]]) -> Updates:
    """What every control offers."""
    quant, steps = looked.quant, looked.quant.steps[looked.choice.stage, MAGNITUDE]
    return {
        "run": {"choices": runs},
        "stage": {"choices": [(quant.labels[s], s) for s in quant.stages]},
        "curve": {},
        "tensor": {"choices": [(short, name) for name, short in quant.tensors.items()]},
        "figure": {"choices": [(f.label, name) for name, f in FIGURES.items()]},
        "step": {"minimum": steps[0], "maximum": max(steps[-1], 1)},
        "group": {},
    }


def _controls(
    choice: QuantSelection, before: QuantSelection, offered: Updates, known: Updates
) -> Updates:
    """What every control offers, and its value, where either changes."""
    shown: Updates = {}
    for name, offer in offered.items():
        update = {} if offer == known.get(name) else dict(offer)
        new = getattr(choice, name)
        if new != getattr(before, name):
            update["value"] = int(new) if name == "step" else new
        shown[name] = gr.update(**update) if update else gr.skip()
    return shown


def _of_tensor(looked: QuantView) -> Updates:
    return {**_drawn(looked, "map"), **_drawn(looked, "usage"), **_of_group(looked)}


def _of_group(looked: QuantView) -> Updates:
    row, group = looked.group
    return {
        "group": f"{row},{group}", "one": views.group_html(looked),
        **_drawn(looked, "history"), **_drawn(looked, "weights"),
    }  # fmt: skip


def _drawn(looked: QuantView, card: str) -> Updates:
    view: View = CARDS[card](looked)
    return dict(zip((f"{card}_{part}" for part in PARTS), view, strict=True))


def _why_nothing(run: str) -> str:
    """HTML: what is missing, and where it comes from."""
    if not run:
        return empty(NO_RUN, (href("launch", kind="dlqat"), "Start one"))
    later = "They appear here when training begins."
    return empty_state(run, "recorded no groups", later, href("launch", kind="dlqat"))


PAGE = Page("Quant", "quant", build, order=60, key="q")
