"""The weights of one tensor, as each of several runs left them, over each other."""

from __future__ import annotations

import plotly.graph_objects as go

from backend.store import queries
from ui.charts.histograms import overlay
from ui.charts.series import Series, bins_frame, cut_off_peaks, on_shared_bins, series_note
from ui.pages.compare.comparison import RunComparison
from ui.runs.rows import RunRow
from ui.runs.weights import DENSE, RunWeights, weights_of
from ui.theme import stage_style
from ui.widgets.chart import note_html
from ui.widgets.panel import frame_table

ASK = "What did each run leave of this tensor?"


def weights_held(of: RunComparison) -> dict[str, RunWeights]:
    """Run -> its weight statistics; runs without any are left out."""
    found = {run: weights_of(run) for run in of.runs}
    return {run: weights for run, weights in found.items() if weights}


def tensors_of(held: dict[str, RunWeights]) -> dict[str, str]:
    """Full name -> label of every tensor of the runs, as data flows through the first."""
    return {name: label for w in reversed(held.values()) for name, label in w.tensors.items()}


def drawn_tensor(
    of: RunComparison, held: dict[str, RunWeights], tensor: str
) -> tuple[go.Figure, str, str]:
    """Figure, note and table of one tensor."""
    series = _series(of, held, tensor)
    binned = on_shared_bins([*series.values()])
    missing = ", ".join(run for run in of.runs if run not in series)
    told = f"Not stored by {missing}." if missing else ""
    words = " ".join(filter(None, (series_note(binned), cut_off_peaks(binned), told)))
    frame = bins_frame(binned)
    table = "" if frame is None else frame_table(frame, tensor)
    return overlay([*series.values()]), note_html(ASK, words), table


def _series(of: RunComparison, held: dict[str, RunWeights], tensor: str) -> dict[str, Series]:
    """The dense tensor as the baseline knows it, then run -> what it ended with."""
    drawn: dict[str, Series] = {}
    for row in sorted(of.rows, key=lambda row: row is not of.base):
        run = row.job.run
        if run not in held or tensor not in held[run].tensors:
            continue
        by_stage = {s.stage: s for s in queries.tensor_snapshots(row.job.id, tensor)}
        if not drawn and DENSE in by_stage:
            drawn[DENSE] = Series(by_stage[DENSE], "Dense", stage_style(DENSE))
        stage = _last(row, held[run], [*by_stage])
        label = f"{run} · {held[run].labels.get(stage, stage)}"
        drawn[run] = Series(by_stage[stage], label, of.strokes[run])
    return drawn


def _last(row: RunRow, weights: RunWeights, stages: list[str]) -> str:
    """The stage whose weights the run kept, or else the last it has come to."""
    kept = row.figures.kept
    return kept if kept in stages else max(stages, key=weights.stages.index)
