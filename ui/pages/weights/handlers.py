"""What happens on the Weights page: each event, and the outputs it changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.store import queries
from ui.charts.chart import Chart
from ui.charts.stages import perplexities, perplexity_chart
from ui.charts.statistics import STATISTICS, available
from ui.format import href
from ui.frame import query
from ui.pages.weights.data import TensorView
from ui.pages.weights.explanations import explained_html
from ui.pages.weights.layer_charts import layers_chart
from ui.pages.weights.selection import AGAINST, GROUPS, MEASURES, WeightsSelection
from ui.pages.weights.tensor.charts import tensor_chart
from ui.runs.weights import DENSE, run_choices, weights_of
from ui.widgets.download import file_payload
from ui.widgets.dropdown import Choices, choices
from ui.widgets.explorer import (
    as_kept,
    control_updates,
    empty_state,
    show_charts,
    show_notice,
)
from ui.widgets.panel import Panel, Updates, updates

LAYERS = Panel("layers", "All layers", height=440, element="heatmap")
TENSOR = Panel("tensor", "One tensor", height=440, element="overlay")
PERPLEXITY = Panel(
    "perplexity", "Perplexity by stage",
    "How does perplexity change from stage to stage? Lower is better.", 280,
)  # fmt: skip
NO_RUN = "No run has stored weight statistics yet. Inspect a model above, or start a run."
NO_PERPLEXITY = "Perplexity appears here as the stages are measured."
LAYER_CONTROLS = {  # control -> the views of all layers that have it
    "stage": ("map", "depth", "ridges", "shapes", "inputs", "tree"),
    "flow": ("inputs",),
    "stat": ("map", "tree"),
    "against": ("map", "tree"),
    "group": ("shapes",),
    "start": ("shapes",),
}
TENSOR_CONTROLS = {  # control -> the views of one tensor that have it
    "show": (
        "overlay",
        "mirror",
        "magnitude",
        "cumulative",
        "difference",
        "channels",
        "matrix",
        "joint",
        "spectrum",
    ),
    "side": ("channels",),
    "measure": ("channels",),
    "order": ("channels",),
    "cells": ("matrix",),
    "spot": ("matrix",),
    "look": ("matrix",),
    "y": ("overlay", "magnitude", "channels"),
}


# events -------------------------------------------------------------------------------------------


def open_page(request: gr.Request) -> Updates:
    selection, at = WeightsSelection.from_address(request), query(request, "at")
    if selection.view == "story" and not selection.stage:
        selection = replace(selection, stage=at)  # the map is at the step of the slider
    return full_refresh(selection, WeightsSelection(), at=at)


def change_run(selection: WeightsSelection) -> Updates:
    """Another run, or another one to compare with."""
    weights = weights_of(selection.run)
    return full_refresh(selection.compared(weights) if weights else selection, selection)


def refresh(seen: Any, selection: WeightsSelection) -> Updates:
    """Nothing until the runs have moved on; then only what that changes."""
    if selection.run and seen and seen["marks"] == _marks(selection):
        return {}
    return full_refresh(selection, selection, seen)


def change_layers(view: TensorView) -> Updates:
    return updates(_layers(view), _show_controls(view, LAYER_CONTROLS), _block_pages(view))


def change_tensor(selection: WeightsSelection) -> Updates:
    """Another view of the same tensor: its statistics stay."""
    view = TensorView.at(selection)
    if view is None:
        return {}
    if not selection.show:  # a person may take every stage away
        view = view.select(replace(view.selection, show=()))
    return updates(TENSOR.show(tensor_chart(view)), _show_controls(view, TENSOR_CONTROLS))


def change_topic(selection: WeightsSelection) -> Updates:
    """Another topic: the first of its views, unless it has the one that is shown."""
    view = TensorView.at(selection)
    if view is None:
        return {}
    offered = choices(view.selection.views)
    views = gr.update(choices=offered, value=view.selection.view, visible=len(offered) > 1)
    return updates({"view": views}, change_tensor(selection))


def pick_tensor(view: TensorView) -> Updates:
    """A tensor chosen in the chart of all layers; map and tree have marked it themselves."""
    shown = view.selection.layers in ("map", "tree")
    return updates(_tensor(view), {} if shown else _layers(view))


def zoom(view: TensorView) -> Updates:
    """A cell of the matrix was chosen: the single weights around it; nothing in other views."""
    if view.selection.view != "matrix":
        return {"spot": ""}
    spot = gr.update(choices=choices(spots(view)), value=view.selection.spot)
    return updates(TENSOR.show(tensor_chart(view)), {"spot": spot})


def choose_tensor(view: TensorView, by: int = 0) -> Updates:
    """The tensor `by` places on."""
    view = view.select(view.selection.moved(view.weights, by))
    tensor = {"tensor": view.selection.tensor}
    return updates(tensor, _tensor(view), _layers(view), _block_pages(view))


def all_statistics(run: str | None) -> Any:
    """A file with every tensor at every stage."""
    weights = weights_of(run or "")
    if weights is None:
        return gr.skip()
    table = weights.table.to_csv(index=False).encode()
    return file_payload(f"{weights.job.run}-statistics.csv", table)


# updates ------------------------------------------------------------------------------------------


def full_refresh(
    selection: WeightsSelection, before: WeightsSelection, seen: Any = None, at: str = ""
) -> Updates:
    """All of the page.

    Args:
        before: what the browser holds.
        seen: what was shown last; stages reached since join what is shown, and charts whose
            figures are the same are left alone.
        at: the stage at which the steps begin.
    """
    jobs = queries.runs_with_weights()
    selection = selection if selection.run or not jobs else replace(selection, run=jobs[0].run)
    runs = run_choices(jobs, selection.run)
    view = TensorView.at(selection)
    if view is None:
        return show_notice(_nothing(selection.run), runs, selection.run)
    joined = selection.with_new_stages(view.weights, seen["stages"] if seen else None)
    view = view.select(joined.settled(view.weights, view.other))
    now = as_kept({
        "marks": _marks(view.selection), "stages": view.weights.stages,
        "snapshots": [view.selection.tensor, *view.steps], "offers": _offers(view, runs),
    })  # fmt: skip
    same = seen and seen["snapshots"] == now["snapshots"]
    return updates(
        {"seen": now},
        show_charts(),
        control_updates(view.selection, before, now["offers"], seen and seen["offers"]),
        _layers(view),
        {} if same else _tensor(view, at),
        _perplexity(view),
    )


def _marks(selection: WeightsSelection) -> list[Any]:
    marks = [queries.weights_mark(run) if run else None for run in (selection.run, selection.vs)]
    return list(as_kept(marks))


def _nothing(run: str) -> Markup:
    later = "They appear here block by block."
    return empty_state(run, NO_RUN, "stored no weight statistics", later, href("new"))


def _layers(view: TensorView) -> Updates:
    return LAYERS.show(layers_chart(view))


def _tensor(view: TensorView, at: str = "") -> Updates:
    snapshots = [*view.snapshots.values()]
    name = f"{view.weights.job.run}-{view.selection.tensor}"
    run, tensor = view.weights.job.run, view.selection.tensor
    groups = href("quantization", run=run, tensor=tensor) if view.quantized else Markup()
    statistics = explained_html(snapshots, view.weights.labels, name, groups)
    return TENSOR.show(tensor_chart(view, at)) | {"statistics": statistics}


def _perplexity(view: TensorView) -> Updates:
    chart, weights = stages_chart(view), view.weights
    drawn = chart.frame is not None or len(weights.labels) > 1
    shown = PERPLEXITY.show(chart, weights.job.run)
    return {"perplexity": gr.update(visible=drawn)} | shown


def stages_chart(view: TensorView) -> Chart:
    """Perplexity by stage of the run."""
    weights = view.weights
    results = perplexities(queries.results([weights.job.id]), weights.labels)
    return perplexity_chart(results, weights.labels) if results else Chart(NO_PERPLEXITY)


# controls -----------------------------------------------------------------------------------------


def _offers(view: TensorView, runs: Choices) -> dict[str, dict[str, Any]]:
    """What each control offers, and whether the chosen view has it."""
    weights = view.weights
    stages = [(weights.labels[stage], stage) for stage in weights.stages]
    others = [(label, run) for label, run in runs if run != weights.job.run]
    statistics = {name: STATISTICS[name].label for name in available(weights.table)}
    possible = {"": True, "dense": DENSE in weights.stages, "run": view.other is not None}
    offered: dict[str, Choices] = {
        "run": runs,
        "vs": [("Nothing", ""), *others],
        "tensor": choices(weights.tensors),
        "stage": stages,
        "stat": choices(statistics),
        "against": choices({name: AGAINST[name] for name in AGAINST if possible[name]}),
        "group": choices(GROUPS),
        "start": choices(view.selection.pages(weights)),
        "view": choices(view.selection.views),
        "show": stages,
        "measure": choices(MEASURES),
        "spot": choices(spots(view)),
    }
    visible = _visible(view)
    offers: dict[str, dict[str, Any]] = {name: {} for name in WeightsSelection.names()}
    for name, offer in offers.items():
        offer |= {"choices": offered[name]} if name in offered else {}
        offer |= {"visible": visible[name]} if name in visible else {}
    return offers


def spots(view: TensorView) -> dict[str, str]:
    """The whole matrix, and the place that was chosen last."""
    whole = {"": "Whole matrix"}
    if not view.selection.spot:
        return whole
    output, input = view.selection.spot.split(",")
    return whole | {view.selection.spot: f"Around output {output}, input {input}"}


def _visible(view: TensorView) -> dict[str, bool]:
    """Whether the chosen views have a control."""
    selection = view.selection
    layers = {name: selection.layers in views for name, views in LAYER_CONTROLS.items()}
    layers["start"] &= len(selection.pages(view.weights)) > 1
    layers["view"] = len(selection.views) > 1
    return layers | {name: selection.view in views for name, views in TENSOR_CONTROLS.items()}


def _show_controls(view: TensorView, names: Iterable[str]) -> Updates:
    """Shows those of the controls that the chosen views have."""
    visible = _visible(view)
    return {name: gr.update(visible=visible[name]) for name in names}


def _block_pages(view: TensorView) -> Updates:
    """The pages of small multiples there are now."""
    pages = choices(view.selection.pages(view.weights))
    visible = _visible(view)["start"]
    return {"start": gr.update(choices=pages, value=view.selection.start, visible=visible)}
