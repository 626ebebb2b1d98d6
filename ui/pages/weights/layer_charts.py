"""The views of all layers: map, depth, shapes. Each is a chart, its question, and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from backend.statistics.names import INPUT_ENERGY, channel_profile
from backend.statistics.tensors import QUANTILES, TensorSnapshot
from ui.charts.chart import Chart
from ui.charts.headlines import lower, of_cells, of_depth, of_tails
from ui.charts.heatmap import MapBaseline, cells, layer_map, title_of
from ui.charts.series import Series
from ui.charts.small_multiples import PANELS, Tensors, shapes_chart
from ui.charts.statistics import STATISTICS
from ui.pages.weights.activations import BlockChannels, activations_chart
from ui.pages.weights.data import TensorView
from ui.pages.weights.depth import depth_note, in_percent, middle, quantile_bands
from ui.pages.weights.ridgeline import ridgeline, ridges_frame, ridges_note
from ui.pages.weights.theory import OF_LAYERS
from ui.pages.weights.tree import architecture_tree
from ui.runs.weights import DENSE
from ui.theme import stage_style

DEPTH = "Which blocks hold wide, narrow or shifted weights?"
RIDGES = "How does the distribution change from block to block?"
INPUTS = "Which input channels are large in every block, and do their weights make up for it?"
NO_INPUTS = (
    "This run has stored no inputs of its layers: they are recorded while a run calibrates, from "
    "runs started now on."
)
SHAPES = "Which layers have a distribution of their own?"


def layers_chart(view: TensorView) -> Chart:
    """The chosen view of all layers."""
    name = view.selection.layers
    return replace(VIEWS[name](view), theory=OF_LAYERS[name])


def _map(view: TensorView) -> Chart:
    selection, weights = view.selection, view.weights
    stage, statistic, base = selection.stage, selection.stat, _baseline(view)
    chart = layer_map(weights.table, stage, statistic, selection.tensor, base)
    if chart.frame is None or not chart.frame.iloc[:, -1].notna().any():
        return Chart(_not_measured(view, base), question=STATISTICS[statistic].question)
    name = f"{weights.job.run}-{stage}-{statistic}" + (f"-less-{selection.against}" if base else "")
    label = STATISTICS[statistic].label
    headline = of_cells(chart.frame, f"Change of {lower(label)}" if base else label)
    return replace(chart, question=_map_question(view, base), name=name, headline=headline)


def _tree(view: TensorView) -> Chart:
    """The map as a tree: the same figures, with areas for the numbers of weights."""
    chart, base = _map(view), _baseline(view)
    if chart.frame is None:
        return chart
    selection, statistic = view.selection, STATISTICS[view.selection.stat]
    rows = cells(view.weights.table, selection.stage, selection.stat, base)
    title = title_of(statistic, base, short=True)
    figure = architecture_tree(rows, statistic, title, even=base is not None)
    note = f"{chart.note} Areas are numbers of weights; embeddings and head are not shown."
    return replace(chart, figure=figure, note=note, name=f"{chart.name}-tree")


def _not_measured(view: TensorView, base: MapBaseline | None) -> str:
    """Why the map is empty: the stage lacks the statistic, or what it is compared with does."""
    selection, weights = view.selection, view.weights
    label = STATISTICS[selection.stat].label.lower()
    if base and cells(weights.table, selection.stage, selection.stat)["value"].notna().any():
        return f"{base.label}: {label} is not measured, so nothing can be compared."
    if selection.stage == DENSE:
        return f"{weights.labels[DENSE]} has no {label}: it is what the others are compared with."
    return f"{weights.labels[selection.stage]}: {label} is not measured here."


def _map_question(view: TensorView, base: MapBaseline | None) -> str:
    selection, weights = view.selection, view.weights
    statistic, stage = STATISTICS[selection.stat], weights.labels[selection.stage]
    if base is None:
        return statistic.question
    pair = f"{stage} and {base.label}"
    if selection.against == "run":
        pair = f"{weights.job.run} and {base.label}, {stage},"
        if view.counterpart(selection.stage) != selection.stage:
            pair = f"{weights.job.run}, {stage}, and {base.label},"
    return f"Where do {pair} differ in {statistic.label.lower()}? No colour: no difference."


def _baseline(view: TensorView) -> MapBaseline | None:
    """What the map is compared with; nothing for a stage that would be compared with itself."""
    selection, weights, other = view.selection, view.weights, view.other
    if selection.against == "run" and other is not None:
        twin = view.counterpart(selection.stage)
        named = f", {other.labels[twin]}" if twin != selection.stage else ""
        return MapBaseline(other.of_stage(twin), f"{other.job.run}{named}")
    if selection.against == DENSE and selection.stage != DENSE:
        return MapBaseline(weights.of_stage(DENSE), weights.labels.get(DENSE, DENSE))
    return None


def _depth(view: TensorView) -> Chart:
    selection, weights = view.selection, view.weights
    stage, label = selection.stage, weights.labels[selection.stage]
    module = weights.places[selection.tensor][1].rsplit(".", 1)[-1]
    blocks = {s.block: s for s in view.module_in_blocks([stage])}
    other, others = _compared_blocks(view)
    if not blocks:
        return Chart(f"{label}: {module} was not recorded.", question=DEPTH)
    columns = ["Block", *map(in_percent, QUANTILES)]
    compared = {*blocks} <= {*others}
    figure = quantile_bands(
        [*blocks],
        [s.quantiles for s in blocks.values()],
        stage_style(stage),
        tensors=[s.tensor for s in blocks.values()],
        picked=selection.tensor,
        compared=[others[b].quantiles for b in blocks] if compared else None,
        other=other,
    )
    widths = [(str(b), middle(s.quantiles)) for b, s in blocks.items()]
    return Chart(
        figure,
        pd.DataFrame([[b, *s.quantiles] for b, s in blocks.items()], columns=columns),
        depth_note([s.n for s in blocks.values()]),
        question=f"{DEPTH} {label}, {module}.",
        name=f"{weights.job.run}-{stage}-{module}-quantiles",
        headline=of_depth(f"The middle 90 % of {module}", widths),
    )


def _compared_blocks(view: TensorView) -> tuple[str, dict[int, TensorSnapshot]]:
    """What the bands are compared with: the other run at that stage, or the dense tensors; its
    name, and its tensors by block, none where that would be the same."""
    stage = view.selection.stage
    if view.other is not None:
        of_run = view.module_in_blocks([view.counterpart(stage)], view.other)
        return view.other.job.run, {s.block: s for s in of_run}
    dense = view.module_in_blocks([DENSE]) if stage != DENSE else []
    return view.weights.labels.get(DENSE, DENSE), {s.block: s for s in dense}


def _ridges(view: TensorView) -> Chart:
    selection, weights = view.selection, view.weights
    stage, label = selection.stage, weights.labels[selection.stage]
    module = weights.places[selection.tensor][1].rsplit(".", 1)[-1]
    snapshots = [*{s.block: s for s in view.module_in_blocks([stage])}.values()]
    if not snapshots:
        return Chart(f"{label}: {module} was not recorded.", question=RIDGES)
    figure = ridgeline(snapshots, stage_style(stage), selection.tensor)
    spreads = [(str(s.block), s.stats["std"]) for s in snapshots]
    return Chart(
        figure,
        ridges_frame(snapshots),
        ridges_note(snapshots),
        question=f"{RIDGES} {label}, {module}.",
        name=f"{weights.job.run}-{stage}-{module}-ridges",
        headline=of_depth(f"Spread of {module}", spreads),
    )


def _inputs(view: TensorView) -> Chart:
    selection, weights = view.selection, view.weights
    stage, flow = selection.stage, selection.flow
    energies = view.profile_in_blocks(INPUT_ENERGY)
    norms = view.profile_in_blocks(channel_profile("column", "norm"), stage)
    if flow != "weights" and not energies:
        return Chart(NO_INPUTS, question=INPUTS)
    if flow != "inputs" and not norms:
        return Chart(f"{weights.labels[stage]}: not recorded here.", question=INPUTS)
    rows = []
    for block in energies if flow == "inputs" else norms:
        found = norms.get(block) or energies[block]
        root = np.sqrt(energies[block].values) if block in energies else np.ones(())
        norm = norms[block].values if block in norms else np.ones(())
        values = {"inputs": root, "weights": norm, "product": root * norm}[flow]
        rows.append(BlockChannels(found.tensor, block, values))
    module = weights.places[selection.tensor][1].rsplit(".", 1)[-1]
    of_stage = "" if flow == "inputs" else f"{weights.labels[stage]}, "
    chart = activations_chart(rows, flow)
    name = f"{weights.job.run}-{module}-{flow}"
    return replace(chart, question=f"{INPUTS} {of_stage}{module}.", name=name)


def _shapes(view: TensorView) -> Chart:
    selection, weights = view.selection, view.weights
    stages = list(dict.fromkeys((DENSE, selection.stage)))
    start = int(selection.start)
    names = selection.panels(weights)[start : start + PANELS]
    tensors = _tensors(view, names, stages)
    if not any(drawn for _, drawn in tensors.values()):
        label = weights.labels[selection.stage]
        return Chart(f"{label}: not recorded here.", question=SHAPES)
    name = f"{weights.job.run}-{selection.stage}-shapes-{selection.group}-{start}"
    chart = shapes_chart(tensors, selection.tensor)
    note = f"{len(names)} of {len(weights.tensors)} tensors, {chart.note}"
    tails = [
        (title, series[-1].snapshot.stats["kurtosis"])
        for title, series in tensors.values()
        if series
    ]
    return replace(chart, note=note, question=SHAPES, name=name, headline=of_tails(tails))


def _tensors(view: TensorView, names: list[str], stages: list[str]) -> Tensors:
    """Tensor -> the title of its panel and what is drawn of it."""
    weights, by_block = view.weights, view.selection.group == "block"
    snapshots = {(s.tensor, s.stage): s for s in view.on_page(stages, names)}
    tensors = {}
    for name in names:
        block, module = weights.places[name]
        drawn = [
            Series(snapshots[name, stage], weights.labels[stage], stage_style(stage))
            for stage in stages
            if (name, stage) in snapshots
        ]
        tensors[name] = (module.rsplit(".", 1)[-1] if by_block else f"Block {block}", drawn)
    return tensors


VIEWS: dict[str, Callable[[TensorView], Chart]] = {
    "map": _map, "depth": _depth, "ridges": _ridges, "shapes": _shapes, "inputs": _inputs,
    "tree": _tree,
}  # fmt: skip
