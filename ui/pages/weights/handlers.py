"""What happens on the Weights page: each event, and the outputs it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from ui.frame import SILENT_EVENT, on_change, on_load, query, url_sync
from ui.pages.weights.controls import CONTROLS, OF_LAYERS, OF_TENSOR, make_parts
from ui.pages.weights.data import TensorView
from ui.pages.weights.inspect_model import compute, models_for, offered
from ui.pages.weights.render import (
    choice_of,
    everything,
    layers_shown,
    marks,
    offer,
    pages_offered,
    tensor_shown,
)
from ui.pages.weights.selection import WeightsSelection, weights_of
from ui.widgets.download import Download, file_payload
from ui.widgets.explorer import PICKED, Updates

LATEST = {"trigger_mode": "always_last", **SILENT_EVENT}


def build() -> None:
    parts, saver = make_parts(), Download()
    new = parts.newcomer

    def load(request: gr.Request) -> list[Any]:
        return parts.named_outputs(opened)(request)

    def on(event: Any, handler: Any) -> Any:
        return event(parts.named_outputs(handler), parts.controls, parts.outputs, **LATEST)

    pick = parts["layers_chart"].select(None, parts["tensor"], parts["tensor"], js=PICKED)
    on(pick.then, picked)  # the map has outlined the cell itself
    asked = new.compute.click(compute, new.model, [new.told, parts["run"]], **SILENT_EVENT)
    events = [pick, on_load(load, None, parts.outputs), on(asked.then, chosen)]
    events += [on(parts[name].input, handler) for name, handler in CHANGES.items()]
    events += [on(parts.back.click, moved_back), on(parts.on.click, moved_on)]
    for event in events:
        url_sync(event, **{name: parts[name] for name in CONTROLS})
    on_change(parts.named_outputs(refreshed), [parts["seen"], *parts.controls], parts.outputs)
    on_load(offered, parts["run"], [new.model, new.compute, new.told])
    parts["run"].change(models, parts["run"], new.model, **SILENT_EVENT)
    parts.save.click(all_statistics, parts["run"], saver, **SILENT_EVENT)


# events -------------------------------------------------------------------------------------------


def opened(request: gr.Request) -> Updates:
    asked = {name: query(request, name) for name in CONTROLS}
    shown = tuple(part for part in asked.pop("show").split(",") if part)
    return everything(
        WeightsSelection(**asked, show=shown), WeightsSelection(), at=query(request, "at")
    )


def chosen(*values: Any) -> Updates:
    """Another run, or another one to compare with."""
    before = choice_of(values)
    weights = weights_of(before.run)
    return everything(before.compared(weights) if weights else before, before)


def refreshed(seen: Any, *values: Any) -> Updates:
    """Nothing until the runs have moved on; then only what that changes."""
    before = choice_of(values)
    if before.run and seen and seen["marks"] == marks(before):
        return {}
    return everything(before, before, seen)


def layers_changed(*values: Any) -> Updates:
    looked = TensorView.at(choice_of(values))
    if looked is None:
        return {}
    controls = offer(looked, OF_LAYERS, looked.choice.layers) | pages_offered(looked)
    return {**layers_shown(looked), **controls}


def tensor_changed(*values: Any) -> Updates:
    asked = choice_of(values)
    looked = TensorView.at(asked)
    if looked is None:
        return {}
    if values[CONTROLS.index("show")] == []:  # a person may take every stage away
        looked = replace(looked, choice=replace(looked.choice, show=()))
    return {**tensor_shown(looked), **offer(looked, OF_TENSOR, looked.choice.view)}


def picked(*values: Any) -> Updates:
    """A tensor chosen in the chart of all layers."""
    looked = TensorView.at(choice_of(values))
    if looked is None:
        return {}
    redrawn = {} if looked.choice.layers == "map" else layers_shown(looked)
    return {**tensor_shown(looked), **redrawn}


def moved_to(*values: Any) -> Updates:
    return _moved(values, 0)


def moved_back(*values: Any) -> Updates:
    return _moved(values, -1)


def moved_on(*values: Any) -> Updates:
    return _moved(values, 1)


def _moved(values: Sequence[Any], step: int) -> Updates:
    looked = TensorView.at(choice_of(values))
    if looked is None:
        return {}
    looked = replace(looked, choice=looked.choice.moved(looked.weights, step))
    shown = {**tensor_shown(looked), **layers_shown(looked), **pages_offered(looked)}
    return {"tensor": looked.choice.tensor, **shown}


def models(run: str | None) -> Any:
    return gr.update(choices=models_for(run or ""))


def all_statistics(run: str | None) -> Any:
    weights = weights_of(run or "")
    if weights is None:
        return gr.skip()
    return file_payload(
        f"{weights.job.run}-statistics.csv", weights.table.to_csv(index=False).encode()
    )


CHANGES = {
    **dict.fromkeys(("run", "vs"), chosen),
    **dict.fromkeys(("layers", "stage", "stat", "against", "group", "start"), layers_changed),
    **dict.fromkeys(("view", "show", "y", "side", "measure", "order"), tensor_changed),
    "tensor": moved_to,
}
