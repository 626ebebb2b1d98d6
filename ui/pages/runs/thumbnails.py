"""Small pictures of runs in the table: a histogram of weights and a curve, as paths of an SVG of
`WIDTH` x `HEIGHT`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    described, ends = metric(key), [points[0][1], points[-1][1]]
    title = f"{described.title}: {' to '.join(format_value(described, end) for end in ends)}"
    label = f"{described.label}{' by block' if key.axis == BLOCK else ''}"
    path = curve_path(points, spans[key].last, key.axis, extent(key.axis, points))
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


def extent(axis: str, points: Points) -> tuple[float, float]:
    """Lowest and highest value of a picture; over blocks from zero."""
    values = [value for _, value in points]
    return 0.0 if axis == BLOCK else min(values), max(values)


def curve_path(
    points: Points,
    last: int,
    axis: str,
    extent: tuple[float, float],
    size: tuple[int, int] = (WIDTH, HEIGHT),
    shift: float = 0.0,
) -> str:
    """A line through points, from step 0 to `last`; over blocks, which are no course of time, a
    vertical line for each block, moved by `shift` pixels."""
    (low, high), (width, height) = extent, size
    x, y = (width - 8) / max(1, last), (height - 2) / ((high - low) or 1.0)
    start = 1 + shift if axis == BLOCK else 1
    places = [f"{start + step * x:.1f} {1 + (high - v) * y:.1f}" for step, v in points]
    if axis == BLOCK:
        return "".join(f"M{place}V{height}" for place in places)
    return f"M{'L'.join(places)}"


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
    drawn = extent(axis, [point for points in curves.values() for point in points])
    shown = partial(format_value, metric(MetricKey(family)))
    last, size = max(points[-1][0] for points in curves.values()), (LIVE_WIDTH, LIVE_HEIGHT)
    lines = [
        (run, shown(points[-1][1]), curve_path(points, last, axis, drawn, size, STICK * n), color)
        for n, ((run, points), color) in enumerate(zip(curves.items(), cycle(OKABE_ITO)))
    ]
    low, high = map(shown, drawn)
    title = metric(MetricKey(family)).title
    ends = {"low": low, "high": high, "axis": axis, "last": last}
    return {"title": title, **ends, "lines": lines}
