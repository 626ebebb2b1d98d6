"""Key figures and moving histogram of the newest successful run of each method; until there are
any, of the bundled examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.statistics.tensors import TensorSnapshot
from backend.store import queries, tensors
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.sides import MAX_SIDES
from jobs.generate import config as generate
from jobs.kind import KeyFigure, Kind, kinds
from jobs.metrics import PERPLEXITY, SPEED_UP, metric
from jobs.serving.transcript import Transcript, read_transcript
from ui.format import number, share
from ui.runs.pairs import stage_comparison
from ui.runs.results import RunResults, speed_conditions
from ui.runs.weights import weights_of
from ui.theme import name_colours, stage_style

BARS = 96  # of the histogram
WIDTH = 0.7  # of the stored histogram is shown; the rest is nearly empty
AXIS_HEADROOM = 1.5  # of the tallest dense bar: the height of the axis
LOOKED_AT = 20  # of the newest runs of a kind
MIN_STAGES = 3  # that make it worth moving


@dataclass(frozen=True)
class Shown:
    """Finished run of a kind with a key figure. `bars`: (label, colour, value as text, length from
    0 to 1) of the key metric by stage; `conditions` apply where it is a speed."""

    job: Job
    kind: Kind
    figure: KeyFigure
    verdict: str
    bars: list[tuple[str, str, str, float]]
    caption: str
    conditions: str

    @property
    def model(self) -> str:
        """Model it was measured on: figures of two models are not comparable."""
        return str(self.job.config.get("model", ""))


def showcase() -> list[Shown]:
    shown = (_newest(kind) for kind in kinds().values())
    return [each for each in shown if each]


def _newest(kind: Kind) -> Shown | None:
    if kind.key_figure is None:
        return None
    for job in queries.jobs([State.SUCCEEDED], kind.name, limit=LOOKED_AT):
        rows = queries.results([job.id])
        measured = {(r.stage, r.metric): r.value for r in rows}
        figure = kind.key_figure(measured, job.kept_stage or "")
        if figure:
            results = RunResults(kind, rows, job)
            values = {s: r.value for (s, m), r in results.rows.items() if m == PERPLEXITY}
            verdict = kind.verdict(stage_comparison(job, values)) if results.kept else ""
            conditions = speed_conditions(job, rows) if kind.key_metric == SPEED_UP else ""
            shown = metric(kind.key_metric)
            caption = f"{shown.title}, by stage. {shown.better.capitalize()} is better."
            bars = _bars(results, kind)
            return Shown(job, kind, figure, verdict, bars, caption, conditions)
    return None


def _bars(results: RunResults, kind: Kind) -> list[tuple[str, str, str, float]]:
    values = {s: v for s in results.stages if (v := results.value(s, kind.key_metric)) is not None}
    styled = [s for s in values if s in kind.styles]
    main = [s for s in styled if kind.styles[s].main] or [*values]
    longest = max((values[stage] for stage in main), default=1.0)
    paint = name_colours(values)
    return [(results.label(s), paint[s], number(values[s]), values[s] / longest) for s in main]


def moving_histogram(shown: Sequence[Shown]) -> dict[str, Any] | None:
    """One tensor as it passes through the stages of a method, for `assets/scripts/hero.js`.

    Returns:
        run, tensor, edge (the axis runs from -edge to edge), and for each stage: name, label,
        colour, said, zeros (share of all weights) and heights (share of all weights in each of
        `BARS` bins, relative to the height of the axis).
    """
    for each in shown:
        stages = [s for s in each.kind.stages if (style := each.kind.styles.get(s)) and style.main]
        weights = weights_of(each.job.run)
        if weights and len([s for s in stages if s in weights.stages]) >= MIN_STAGES:
            names = [*weights.tensors]
            middle = names[len(names) // 2 :]  # of the model; a wide layer is drawn
            wide = next((name for name in middle if "up_proj" in name), middle[0])
            return _histogram(each, stages, wide)
    return None


def _histogram(each: Shown, stages: Sequence[str], tensor: str) -> dict[str, Any]:
    newest = {s.stage: s for s in tensors.tensor_snapshots(each.job.id, tensor)}
    drawn = [newest[stage] for stage in stages if stage in newest]
    heights = [_heights(snapshot) for snapshot in drawn]
    top = min(max(float(h.max()) for h in heights), AXIS_HEADROOM * float(heights[0].max())) or 1.0
    perplexity = {label: text for label, _, text, _ in each.bars}
    shown = []
    for snapshot, height in zip(drawn, heights, strict=True):
        label, zeros = each.kind.stages[snapshot.stage], snapshot.zeros / snapshot.n
        above = height[height > top]
        said = f"{share(zeros, 0)} of the weights are exactly zero"
        said += f", perplexity {perplexity[label]}." if perplexity.get(label) else "."
        if len(above):
            said += f" Cut off: {len(above)} bars that hold {share(above.sum(), 0)}."
        shown.append(
            {
                "name": snapshot.stage,
                "label": label,
                "colour": stage_style(snapshot.stage).colour,
                "zeros": round(zeros, 4),
                "said": said,
                "heights": [round(min(1.0, float(h / top)), 4) for h in height],
            }
        )
    edge = WIDTH * drawn[0].hi
    return {"run": each.job.run, "tensor": tensor, "edge": edge, "stages": shown}


def _heights(snapshot: TensorSnapshot) -> np.ndarray:
    """Share of all weights in each of `BARS` bins of the middle of the stored histogram, [BARS]."""
    counts = np.asarray(snapshot.counts, float)
    middle, reach = len(counts) / 2, WIDTH * len(counts) / 2
    merged = np.interp(
        np.linspace(middle - reach, middle + reach, BARS + 1), np.arange(len(counts) + 1),
        np.concatenate([[0.0], np.cumsum(counts)]),
    )  # fmt: skip
    heights: np.ndarray = np.diff(merged) / snapshot.n
    return heights


def drafted_text() -> tuple[Job, Transcript] | None:
    for job in queries.jobs([State.SUCCEEDED], generate.NAME, limit=LOOKED_AT):
        for side in range(1, MAX_SIDES + 1):
            transcript = read_transcript(job.run, side)
            if any(head for _, head in transcript.tokens):
                return job, transcript
    return None
