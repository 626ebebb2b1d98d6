"""Small pictures of runs in the table: a histogram of weights and a curve, as paths of an SVG of
`WIDTH` x `HEIGHT`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from backend.metric_key import MetricKey
from backend.statistics.tensors import TensorSnapshot
from backend.store import frames, tensors
from backend.store.frames import CurveSpan
from backend.store.tables import Job
from jobs.metrics import BLOCK, LOSS, MEMORY, PROCESSOR, metric
from ui.runs.results import format_value, stages_of
from ui.runs.rows import RunRow
from ui.theme import OKABE_ITO, stage_style

WIDTH, HEIGHT = 96, 32
LIVE_WIDTH, LIVE_HEIGHT = 480, 120
BARS = 32
SAMPLES, LIVE_SAMPLES = 32, 120  # points of a curve
STICK = 4  # pixels between the lines of two runs
NO_POINTS = [(0, 0.0)]  # stands for a curve without finite values


@dataclass(frozen=True)
class Picture:
    """Colored paths, a description, and the name of what is drawn."""

    paths: Sequence[tuple[str, str]]  # d, color
    title: str
    label: str = ""


NOTHING = Picture((), "")


_DRAWN: WeakKeyDictionary[RunRow, tuple[Picture, Picture]] = WeakKeyDictionary()


def thumbnails(row: RunRow) -> tuple[Picture, Picture]:
    """Histogram and curve of a run, drawn once for each state of its row."""
    if row not in _DRAWN:
        _DRAWN[row] = (_histogram(row.job), _curve(row.job))
    return _DRAWN[row]


def _histogram(job: Job) -> Picture:
    """The first tensor: the original model as an area, the kept stage as bars."""
    last: dict[str, TensorSnapshot] = {}
    for snapshot in tensors.first_snapshots(job.id):  # by step
        if len(snapshot.counts):
            last[snapshot.stage] = snapshot
    order = [stage for stage in stages_of(job) if stage in last] or [*last]
    if not order:
        return NOTHING
    kept = job.kept_stage if job.kept_stage in last else order[-1]
    labels = stages_of(job)
    before, after = last[order[0]], last[kept]
    titles = [f"{after.tensor}: {labels.get(kept, kept)}"]
    paths = [(_bars(after), stage_style(kept).color)]
    if kept != order[0]:
        paths.insert(0, (_bars(before), stage_style(order[0]).color))
        titles.append(labels.get(order[0], order[0]))
    return Picture(paths, " over ".join(titles))


def _bars(snapshot: TensorSnapshot) -> str:
    """Bars of the non-zero weights, scaled to the highest one."""
    counts = snapshot.counts
    heights = np.add.reduceat(counts, np.arange(0, len(counts), max(1, len(counts) // BARS)))
    step, top = WIDTH / len(heights), max(1, heights.max())
    tall = [(i, HEIGHT * n / top) for i, n in enumerate(heights) if n]
    return "".join(f"M{i * step:.1f} {HEIGHT}v-{h:.1f}h{step:.1f}v{h:.1f}z" for i, h in tall)


def _curve(job: Job) -> Picture:
    spans = frames.spans(job.id)
    if (key := main_curve(job, spans)) is None:
        return NOTHING
    points = frames.samples(job.id, key, spans[key], SAMPLES) or NO_POINTS
    values = [value for _, value in points]
    shown = partial(format_value, metric(key))
    title = f"{metric(key).title}: {shown(values[0])} to {shown(values[-1])}"
    label = metric(key).label
    if key.axis == BLOCK:
        path = sticks(points, spans[key].last, max(values))
        return Picture([(path, "var(--accent)")], title, f"{label} by block")
    path = polyline(points, spans[key].last, (min(values), max(values)))
    return Picture([(path, "var(--accent)")], title, label)


def main_curve(job: Job, spans: dict[MetricKey, CurveSpan]) -> MetricKey | None:
    """The loss, or else the curve with the most points, of the latest stage, except memory and
    processor time; None without a curve."""
    order = [*stages_of(job)]
    taken = (MEMORY, PROCESSOR)
    long = {key: span for key, span in spans.items() if span.points > 2 and key not in taken}

    def rank(key: MetricKey) -> tuple[bool, int, int]:
        stage = order.index(key.stage) if key.stage in order else -1
        return key.family == LOSS.family, long[key].points, stage

    return max(long, key=rank, default=None)


Points = Sequence[tuple[int, float]]


def polyline(
    points: Points, last: int, extent: tuple[float, float], width: int = WIDTH, height: int = HEIGHT
) -> str:
    """A path through points, from step 0 to `last` and from the lowest to the highest value."""
    low, high = extent
    x, y = (width - 2) / max(1, last), (height - 2) / ((high - low) or 1.0)
    places = [f"{1 + step * x:.1f} {1 + (high - value) * y:.1f}" for step, value in points]
    return "M" + "L".join(places)


def sticks(
    points: Points,
    last: int,
    high: float,
    width: int = WIDTH,
    height: int = HEIGHT,
    shift: float = 0.0,
) -> str:
    """A vertical line for each block, from zero to its value, as blocks are no course of time.

    Args:
        shift: pixels to the right, so that lines of several runs stand beside each other.
    """
    x, y = (width - 8) / (last + 1), (height - 2) / (high or 1.0)
    places = [(2 + step * x + shift, height - value * y) for step, value in points]
    return "".join(f"M{at:.1f} {height}L{at:.1f} {top:.1f}" for at, top in places)


def live_curves(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """The main curves of live runs, one picture for each metric."""
    curves = defaultdict[tuple[str, str], dict[str, Points]](dict)
    for job in jobs:
        spans = frames.spans(job.id)
        if (key := main_curve(job, spans)) is not None:
            points = frames.samples(job.id, key, spans[key], LIVE_SAMPLES) or NO_POINTS
            curves[key.family, key.axis][job.run] = points
    return [_overlay(*card, group) for card, group in curves.items()]


def _overlay(family: str, axis: str, curves: dict[str, Points]) -> dict[str, Any]:
    """Title, lowest and highest value, name of the axis, last step, and run, last value, path and
    color of each line."""
    values = [value for points in curves.values() for _, value in points]
    shown = partial(format_value, metric(MetricKey(family)))
    last, extent = max(points[-1][0] for points in curves.values()), (min(values), max(values))
    size, is_by_block = (LIVE_WIDTH, LIVE_HEIGHT), axis == BLOCK
    lines = [
        (
            run,
            shown(points[-1][1]),
            sticks(points, last, extent[1], *size, shift=STICK * place)
            if is_by_block
            else polyline(points, last, extent, *size),
            color,
        )
        for place, ((run, points), color) in enumerate(zip(curves.items(), cycle(OKABE_ITO)))
    ]
    low, high = "0" if is_by_block else shown(extent[0]), shown(extent[1])
    described = metric(MetricKey(family))
    label = f"{described.label} by block" if is_by_block else described.label
    title = replace(described, label=label).title
    ends = {"low": low, "high": high, "axis": axis, "last": last}
    return {"title": title, **ends, "lines": lines}
