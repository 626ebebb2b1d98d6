"""The views of all layers: map, depth, shapes. Each is a chart, its question, and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backend.statistics.tensors import QUANTILES, TensorSnapshot
from ui.charts.heatmap import MapBaseline, cells, heatmap_note, layer_heatmap, title_of
from ui.charts.series import Series, cut_off_peaks
from ui.charts.statistics import STATISTICS
from ui.format import esc, number
from ui.pages.weights.data import TensorView
from ui.pages.weights.depth import depth_note, in_percent, quantile_bands
from ui.pages.weights.selection import DENSE, RunWeights, WeightsSelection
from ui.pages.weights.small_multiples import BINS, PANELS, merged, small_multiples
from ui.theme import stage_style
from ui.widgets.chart import note_html
from ui.widgets.html import data_table
from ui.widgets.weight_tables import exact, layers_table

DEPTH = "Which blocks hold wide, narrow or shifted weights?"
SHAPES = "Which layers have a shape of their own?"


def layers_view(looked: TensorView) -> list[Any]:
    """Figure or sentence, note, table."""
    return VIEWS[looked.choice.layers](looked)


def _map(looked: TensorView) -> list[Any]:
    choice, weights = looked.choice, looked.weights
    shown, base = STATISTICS[choice.stat], _base(choice, weights, looked.other)
    rows = cells(weights.table, choice.stage, choice.stat, base)
    if not rows["value"].notna().any():
        return [_unmeasured(looked, base), note_html(shown.question), ""]
    less = f"-less-{choice.against}" if base else ""
    name = f"{weights.job.run}-{choice.stage}-{choice.stat}{less}"
    return [
        _named(layer_heatmap(weights.table, choice.stage, choice.stat, choice.tensor, base), name),
        note_html(_asked(looked, base), heatmap_note(rows, even=base is not None)),
        layers_table(rows, choice.stat, name, title_of(shown, base)),
    ]


def _unmeasured(looked: TensorView, base: MapBaseline | None) -> str:
    """Why the map is empty: the stage lacks the figure, or what it is compared with does."""
    choice, weights = looked.choice, looked.weights
    what = STATISTICS[choice.stat].label.lower()
    if base and cells(weights.table, choice.stage, choice.stat)["value"].notna().any():
        return f"{base.label}: {what} is not measured, so nothing can be compared."
    return f"{weights.labels[choice.stage]}: {what} is not measured here."


def _asked(looked: TensorView, base: MapBaseline | None) -> str:
    """The question the map answers."""
    choice, weights = looked.choice, looked.weights
    shown, stage = STATISTICS[choice.stat], weights.labels[choice.stage]
    if base is None:
        return shown.question
    pair = f"{stage} and {base.label}"
    if choice.against == "run":
        pair = f"{weights.job.run} and {base.label}, {stage},"
    return f"Where do {pair} differ in {shown.label.lower()}? No colour: no difference."


def _base(
    choice: WeightsSelection, weights: RunWeights, other: RunWeights | None
) -> MapBaseline | None:
    """What the map is compared with; nothing for a stage that would be compared with itself."""
    if choice.against == "run" and other is not None:
        return MapBaseline(other.of_stage(choice.stage), other.job.run)
    if choice.against == DENSE and choice.stage != DENSE:
        return MapBaseline(weights.of_stage(DENSE), weights.labels.get(DENSE, DENSE))
    return None


def _depth(looked: TensorView) -> list[Any]:
    choice, weights = looked.choice, looked.weights
    stages = [choice.stage] if choice.stage == DENSE else [choice.stage, DENSE]
    found = looked.module_in_blocks(stages)
    now = {s.block: s for s in found if s.stage == choice.stage}
    dense = {s.block: s for s in found if s.stage == DENSE}
    module = weights.places[choice.tensor][1].rsplit(".", 1)[-1]
    if not now:
        return [f"{weights.labels[choice.stage]}: {module} was not recorded.", note_html(DEPTH), ""]
    compared = [dense[b].quantiles for b in now] if len(stages) > 1 and {*now} <= {*dense} else None
    figure = quantile_bands(
        [*now],
        [s.quantiles for s in now.values()],
        stage_style(choice.stage),
        tensors=[s.tensor for s in now.values()],
        picked=choice.tensor,
        dense=compared,
    )
    name = f"{weights.job.run}-{choice.stage}-{module}-quantiles"
    counted = depth_note([s.n for s in now.values()])
    note = note_html(f"{DEPTH} {weights.labels[choice.stage]}, {module}.", counted)
    return [_named(figure, name), note, _quantile_table(now, name)]


def _quantile_table(found: Mapping[int, TensorSnapshot], name: str) -> str:
    rows = [
        [str(block), *(exact(number(q), q) for q in taken.quantiles)]
        for block, taken in found.items()
    ]
    return data_table(["Block", *map(in_percent, QUANTILES)], rows, name)


def _shapes(looked: TensorView) -> list[Any]:
    choice, weights = looked.choice, looked.weights
    start = int(choice.start)
    names = choice.panels(weights)[start : start + PANELS]
    stages = [choice.stage] if choice.stage == DENSE else [DENSE, choice.stage]
    found: dict[str, dict[str, TensorSnapshot]] = {name: {} for name in names}
    for taken in looked.on_page(stages, names):
        if taken.tensor in found:
            found[taken.tensor][taken.stage] = taken
    panels = {
        name: (_short(name, weights, choice.group), _lines(by_stage, stages, weights))
        for name, by_stage in found.items()
    }
    if not any(series for _, series in panels.values()):
        return [f"{weights.labels[choice.stage]}: not recorded here.", note_html(SHAPES), ""]
    every = [s for _, series in panels.values() for s in series]
    name = f"{weights.job.run}-{choice.stage}-shapes-{choice.group}-{start}"
    cut = cut_off_peaks([merged(s) for s in every])
    counted = f"{len(names)} of {len(weights.tensors)} tensors, {BINS} bins, the same axes. {cut}"
    return [
        _named(small_multiples(panels, choice.tensor), name),
        note_html(SHAPES, counted),
        _panels_table(panels, name),
    ]


def _lines(
    by_stage: Mapping[str, TensorSnapshot], stages: list[str], weights: RunWeights
) -> list[Series]:
    return [Series(by_stage[s], weights.labels[s], stage_style(s)) for s in stages if s in by_stage]


def _short(name: str, weights: RunWeights, group: str) -> str:
    block, module = weights.places[name]
    return module.rsplit(".", 1)[-1] if group == "block" else f"Block {block}"


def _panels_table(panels: Mapping[str, tuple[str, list[Series]]], name: str) -> str:
    """One column for each line of each panel, where their bins are the same; else the counts."""
    rows = [
        [esc(tensor), esc(s.label), exact(number(s.snapshot.lo), s.snapshot.lo),
         exact(number(s.snapshot.hi), s.snapshot.hi), str(s.snapshot.zeros),
         *map(str, merged(s).snapshot.counts)]
        for tensor, (_, series) in panels.items()
        for s in series
    ]  # fmt: skip
    bins = [f"Bin {i}" for i in range(BINS)]
    return data_table(["Tensor", "Stage", "From", "To", "Zeros", *bins], rows, name)


def _named(figure: Any, name: str) -> Any:
    """The figure with the name its files get."""
    figure.layout.meta = {**(figure.layout.meta or {}), "name": name}
    return figure


VIEWS: dict[str, Callable[[TensorView], list[Any]]] = {
    "map": _map,
    "depth": _depth,
    "shapes": _shapes,
}
