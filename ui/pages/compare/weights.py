"""The weights of one tensor, as each of several runs left them, over each other."""

import math
from collections.abc import Mapping
from dataclasses import replace

import plotly.graph_objects as go

from backend.store import tensors
from ui.charts.chart import Chart
from ui.charts.histograms import overlay_chart
from ui.charts.series import Series, on_shared_bins
from ui.pages.compare.comparison import RunComparison
from ui.pages.compare.small_multiples import COLUMNS, small_multiples
from ui.runs.weights import DENSE, RunWeights, kept_stage, weights_of
from ui.theme import stage_style

ROW_PX = 160  # of a second row of panels
SIDE_BY_SIDE = "side"
VIEWS = {"overlay": "Overlay", SIDE_BY_SIDE: "Side by side"}


def weights_by_run(comparison: RunComparison) -> dict[str, RunWeights]:
    by_run = {run: weights_of(run) for run in comparison.runs}
    return {run: weights for run, weights in by_run.items() if weights}


def tensors_of(by_run: Mapping[str, RunWeights]) -> dict[str, str]:
    return {name: label for w in reversed([*by_run.values()]) for name, label in w.tensors.items()}


def tensor_chart(
    comparison: RunComparison, by_run: Mapping[str, RunWeights], tensor: str, view: str
) -> Chart:
    """Histograms of one tensor, overlaid or in linked panels; `view`: a key of `VIEWS`."""
    series = _series(comparison, by_run, tensor)
    missing = ", ".join(run for run in comparison.runs if run not in series)
    lacking = f"Not stored by {missing}." if missing else ""
    figure = side_by_side(series) if view == SIDE_BY_SIDE else None
    return overlay_chart([*series.values()], lacking, figure=figure)


def side_by_side(series: Mapping[str, Series]) -> go.Figure:
    drawn = dict(zip(series, on_shared_bins([*series.values()]), strict=True))
    dense = [drawn.pop(DENSE)] if DENSE in drawn else []
    panels = {
        run: (run, [replace(one, label="As the run left it"), *dense]) for run, one in drawn.items()
    }
    figure = small_multiples(panels)
    more = ROW_PX * (math.ceil(len(panels) / COLUMNS) - 1)
    return figure.update_layout(meta={"more": more} if more else None)


def _series(
    comparison: RunComparison, by_run: Mapping[str, RunWeights], tensor: str
) -> dict[str, Series]:
    drawn: dict[str, Series] = {}
    for row in sorted(comparison.rows, key=lambda row: row is not comparison.base):
        run = row.job.run
        if run not in by_run or tensor not in by_run[run].tensors:
            continue
        by_stage = {s.stage: s for s in tensors.tensor_snapshots(row.job.id, tensor)}
        if not drawn and DENSE in by_stage:
            drawn[DENSE] = Series(by_stage[DENSE], "Dense", stage_style(DENSE))
        stage = kept_stage(by_run[run], by_stage)
        label = f"{run} · {by_run[run].labels.get(stage, stage)}"
        drawn[run] = Series(by_stage[stage], label, comparison.strokes[run])
    return drawn
