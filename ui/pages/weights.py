"""Weights: where compression acted, and what it made of one tensor, stage by stage.

What is looked at is one `Choice`: from the address when the page is opened, from the controls
afterwards; it is written back into the address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import gradio as gr

from backend.store import queries
from ui.charts.heatmap import heatmap_count, layer_heatmap
from ui.charts.overlay import MOST, legible, overlay_count, stage_overlay
from ui.charts.stages import perplexities, perplexity_count, stage_perplexities
from ui.charts.statistics import STATISTICS, available, with_largest
from ui.components.cards import empty
from ui.components.choose import Choose
from ui.components.plotly_view import ChartCard, PlotlyView, chart_card, note_html
from ui.components.saver import Saver, contents
from ui.components.weight_tables import bins_table, layers_table, perplexity_table, stages_table
from ui.components.weights_choice import (
    Choice,
    RunWeights,
    weights_of,
)
from ui.format import href
from ui.frame import READER, Page, on_change, on_load, query, url_sync

SHAPE = "What did each step do to the shape of this tensor's weights?"
COST = "What does each step cost, and what does it win back? Lower is better."
NO_RUN = "No run has stored weight statistics yet."
NONE_CHOSEN = "Choose a stage to see the weights at that stage."
NOT_YET = "This tensor has not reached any of the chosen stages."
LATEST = {"trigger_mode": "always_last", **READER}


def build() -> None:
    with gr.Row(elem_classes="bar"):
        run = Choose([], label="Run", elem_id="weights-run", scale=1, min_width=280)
        save = gr.Button("Download all statistics", scale=0, min_width=200, elem_id="weights-save")
    notice = gr.HTML("", elem_id="weights-notice", js_on_load=None, visible=False)
    with gr.Column(elem_id="weights-charts") as charts:
        with gr.Row(equal_height=True):
            stage, stat, heat = _heat_card()
            tensor, back, on, show, y, shape = _shape_card()
        with gr.Column(elem_classes="card", min_width=320):
            gr.HTML("<h2>Statistics of this tensor</h2>", js_on_load=None)
            table = gr.HTML("", elem_id="weights-table", js_on_load="slimscope.table(element)")
        with gr.Row():
            cost = _cost_card()
    saver, seen = Saver(), gr.State(None)

    controls = [run, tensor, stage, stat, show, y]
    layers, one, costs = _parts(heat), [*_parts(shape), table], _parts(cost)
    everything = [seen, notice, charts, *controls, *layers, *one, *costs]
    moved = [tensor, *layers, *one]
    pick = heat.view.select(None, None, tensor, js="() => slimscope.picked.customdata")
    pick.then(redrawn, controls, one, **LATEST)  # the map has outlined the cell itself
    events = [
        on_load(opened, None, everything),
        run.input(chosen, controls, everything, **LATEST),
        stage.input(recoloured, controls, layers, **LATEST),
        stat.input(recoloured, controls, layers, **LATEST),
        tensor.input(moved_to, controls, moved, **LATEST),
        back.click(moved_back, controls, moved, **LATEST),
        on.click(moved_on, controls, moved, **LATEST),
        pick,
        show.input(redrawn, controls, one, **LATEST),
        y.input(redrawn, controls, one, **LATEST),
    ]
    on_change(refreshed, [seen, *controls], everything)
    save.click(all_statistics, run, saver, **READER)
    for event in events:
        url_sync(event, run=run, tensor=tensor, stage=stage, stat=stat, show=show, y=y)


def _heat_card() -> tuple[Choose, Choose, ChartCard]:
    stage = Choose([], label="Stage", elem_id="weights-stage", render=False, min_width=120)
    stat = Choose([], label="Colour shows", elem_id="weights-stat", render=False, min_width=120)
    view = PlotlyView(
        label="One statistic of every layer, block by module", height=400,
        elem_id="weights-heatmap", render=False,
    )  # fmt: skip
    return stage, stat, chart_card("All layers", "", view, [[stage, stat]])


def _shape_card() -> tuple[Choose, gr.Button, gr.Button, Choose, gr.Radio, ChartCard]:
    tensor = Choose([], label="Tensor", elem_id="weights-tensor", render=False, min_width=140)
    back = gr.Button("Back", elem_id="weights-previous", render=False, scale=0, min_width=64)
    on = gr.Button("Next", elem_id="weights-next", render=False, scale=0, min_width=64)
    show = Choose(
        [], label=f"Stages, at most {MOST}", elem_id="weights-show", render=False,
        multiselect=True, max_choices=MOST,
    )  # fmt: skip
    y = gr.Radio(
        [("Linear", "linear"), ("Log", "log")], label="Height axis", elem_id="weights-y",
        render=False, scale=0, min_width=180,
    )  # fmt: skip
    view = PlotlyView(
        label="Histogram of one tensor's weights at each stage", height=400,
        elem_id="weights-overlay", render=False,
    )  # fmt: skip
    card = chart_card("One tensor", SHAPE, view, [[tensor, back, on], [show, y]])
    return tensor, back, on, show, y, card


def _cost_card() -> ChartCard:
    view = PlotlyView(
        label="Perplexity of each stage", height=240, elem_id="weights-perplexity", render=False,
        empty="Perplexity appears here as the stages are measured.",
    )  # fmt: skip
    return chart_card("Perplexity by stage", COST, view)


def _parts(card: ChartCard) -> list[gr.HTML]:
    return [card.view, card.note, card.table]


# events: each returns what its outputs in `build` are to show -------------------------------------


def opened(request: gr.Request) -> list[Any]:
    parts = {name: query(request, name) for name in ("run", "tensor", "stage", "stat", "y")}
    shown = tuple(query(request, "show").split(","))
    return _everything(Choice(**parts, show=shown), Choice())


def chosen(*values: Any) -> list[Any]:
    before = _choice(values)
    return _everything(before, before)


def refreshed(seen: Any, *values: Any) -> Any:
    before = _choice(values)
    if before.run and seen and seen["mark"] == queries.weights_mark(before.run):
        return gr.skip()
    return _everything(before, before, seen["stages"] if seen else None)


def recoloured(*values: Any) -> Any:
    choice, weights = _settled(values)
    return _layers(choice, weights) if weights else gr.skip()


def redrawn(*values: Any) -> Any:
    choice, weights = _settled(values)
    return _one(choice, weights) if weights else gr.skip()


def moved_to(*values: Any) -> Any:
    return _moved(values, 0)


def moved_back(*values: Any) -> Any:
    return _moved(values, -1)


def moved_on(*values: Any) -> Any:
    return _moved(values, 1)


def all_statistics(run: str | None) -> Any:
    weights = weights_of(run or "")
    if weights is None:
        return gr.skip()
    return contents(f"{weights.job.run}-statistics.csv", weights.table.to_csv(index=False).encode())


# what is shown ------------------------------------------------------------------------------------


def _choice(values: tuple[Any, ...]) -> Choice:
    run, tensor, stage, stat, show, y = values
    return Choice(run or "", tensor or "", stage or "", stat or "", tuple(show or ()), y or "")


def _settled(values: tuple[Any, ...]) -> tuple[Choice, RunWeights | None]:
    asked = _choice(values)
    weights = weights_of(asked.run)
    if weights is None:
        return asked, None
    choice = asked.settled(weights)
    return (replace(choice, show=()) if values[4] == [] else choice), weights


def _moved(values: tuple[Any, ...], step: int) -> Any:
    choice, weights = _settled(values)
    if weights is None:
        return gr.skip()
    choice = choice.moved(weights, step)
    return [choice.tensor, *_layers(choice, weights), *_one(choice, weights)]


def _everything(asked: Choice, before: Choice, known: Sequence[str] | None = None) -> list[Any]:
    """Cursor, notice, whether there are charts, controls, charts. Controls that hold the right
    value already are not set, so that a refresh takes nothing out of a person's hand; stages
    that are not among the `known` ones are added to what is shown."""
    runs = queries.runs_with_weights()
    run = asked.run or (runs[0].run if runs else "")
    weights = weights_of(run)
    if weights is None:
        why = f"{run} has stored no weight statistics." if run else NO_RUN
        offered = gr.update(choices=[_named(job) for job in runs])
        notice = gr.update(value=empty(why, (href("launch"), "New run")), visible=True)
        return [None, notice, gr.update(visible=False), offered, *[gr.update()] * 15]
    choice = asked.joined_by(weights, known).settled(weights)
    charts = [*_layers(choice, weights), *_one(choice, weights), *_costs(weights)]
    controls = _controls(choice, before, weights, runs)
    seen = {"mark": queries.weights_mark(run), "stages": weights.stages}
    return [seen, gr.update(visible=False), gr.update(visible=True), *controls, *charts]


def _controls(choice: Choice, before: Choice, weights: RunWeights, runs: list[Any]) -> list[Any]:
    stages = [(weights.labels[stage], stage) for stage in weights.stages]
    choices: list[Any] = [
        [_named(job) for job in runs],
        [(short, tensor) for tensor, short in weights.tensors.items()],
        stages,
        [(STATISTICS[name].label, name) for name in available(weights.table)],
        stages,
        [("Linear", "linear"), ("Log", "log")],
    ]
    return [
        gr.update(choices=offered) if new == old else gr.update(choices=offered, value=_plain(new))
        for offered, new, old in zip(choices, astuple(choice), astuple(before), strict=True)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _named(job: Any) -> tuple[str, str]:
    return f"{job.run}  {job.name or job.config.get('model', '')}".strip(), job.run


def _layers(choice: Choice, weights: RunWeights) -> list[Any]:
    rows = weights.of_stage(choice.stage)
    shown = STATISTICS[choice.stat]
    if not with_largest(rows).get(choice.stat, rows["n"] * float("nan")).notna().any():
        why = f"{weights.labels[choice.stage]}: {shown.label.lower()} is not measured here."
        return [why, note_html(shown.question), ""]
    name = f"{weights.job.run}-{choice.stage}-{choice.stat}"
    return [
        layer_heatmap(weights.table, choice.stage, choice.stat, choice.tensor),
        note_html(shown.question, heatmap_count(weights.table, choice.stage, choice.stat)),
        layers_table(rows, choice.stat, name),
    ]


def _one(choice: Choice, weights: RunWeights) -> list[Any]:
    found = {s.stage: s for s in queries.tensor_snapshots(weights.job.id, choice.tensor)}
    snapshots = [found[stage] for stage in weights.stages if stage in found]
    drawn = [legible(s) for s in snapshots if s.stage in choice.show]
    name = f"{weights.job.run}-{choice.tensor}"
    figure = stage_overlay(drawn, choice.show, names=weights.labels, log_y=choice.y == "log")
    return [
        figure if drawn else (NOT_YET if choice.show else NONE_CHOSEN),
        note_html(SHAPE, overlay_count(drawn, weights.labels, choice.y == "log")),
        bins_table(drawn, weights.labels, f"{name}-histogram"),
        stages_table(snapshots, weights.labels, name),
    ]


def _costs(weights: RunWeights) -> list[Any]:
    results = queries.results([weights.job.id])
    found = perplexities(results, weights.labels)
    if not found:
        return [None, note_html(COST), ""]
    return [
        stage_perplexities(found, weights.labels),
        note_html(COST, perplexity_count(found)),
        perplexity_table(found, weights.labels, f"{weights.job.run}-perplexity"),
    ]


PAGE = Page("Weights", "weights", build)
