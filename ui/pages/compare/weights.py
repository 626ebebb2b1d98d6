"""The weights of one tensor, as each of several runs left them, over each other."""

from collections.abc import Mapping

from backend.store import tensors
from ui.charts.chart import Chart
from ui.charts.histograms import overlay_chart
from ui.charts.series import Series
from ui.pages.compare.comparison import RunComparison
from ui.runs.weights import DENSE, RunWeights, kept_stage, weights_of
from ui.theme import stage_style


def weights_by_run(comparison: RunComparison) -> dict[str, RunWeights]:
    by_run = {run: weights_of(run) for run in comparison.runs}
    return {run: weights for run, weights in by_run.items() if weights}


def tensors_of(by_run: Mapping[str, RunWeights]) -> dict[str, str]:
    return {name: label for w in reversed([*by_run.values()]) for name, label in w.tensors.items()}


def tensor_chart(comparison: RunComparison, by_run: Mapping[str, RunWeights], tensor: str) -> Chart:
    series = _series(comparison, by_run, tensor)
    missing = ", ".join(run for run in comparison.runs if run not in series)
    lacking = f"Not stored by {missing}." if missing else ""
    return overlay_chart([*series.values()], lacking)


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
