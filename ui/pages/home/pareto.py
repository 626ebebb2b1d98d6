"""What is best so far: runs that can be compared with one another, and perplexity of their kept
stages against size, sparsity or speed, a dot a run. On the Pareto front are runs that no other
beats in one without losing in the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import plotly.graph_objects as go

from backend.metric_key import MetricKey
from backend.store.states import State
from jobs.metrics import (
    BITS_PER_WEIGHT,
    BYTES,
    LINEAR_BYTES,
    PERPLEXITY,
    SIZE,
    SPEED_UP,
    TOKENS_PER_SECOND,
    ZERO_SHARE,
    Metric,
    metric,
    ordered,
)
from ui.charts.chart import Chart, axis, layout, legend_row, log_axis, reference_line
from ui.charts.headlines import of_front
from ui.charts.lines import dots, log_span
from ui.format import esc, number
from ui.runs.deltas import comparable_by
from ui.runs.results import base_model, format_value, kind_title, setting_summary
from ui.runs.rows import RunRow
from ui.theme import BLUE, GREEN, LIGHT, OKABE_ITO, PINK, VERMILLION
from ui.widgets.html import WIDGETS

AXES = (SIZE, ZERO_SHARE, BITS_PER_WEIGHT, SPEED_UP, TOKENS_PER_SECOND)
MIN_SPREAD = 0.01  # values closer than that, relative to the largest, do not make an axis
MAX_POINTS = 500  # the newest, and all on the front
QUALITY, SPEED = metric(PERPLEXITY), metric(TOKENS_PER_SECOND)
PLAIN, SMALLEST, LARGEST = 11, 8, 24  # pixels
LABELLED = 8  # up to so many runs on the front are named
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
COLOURS = (BLUE, VERMILLION, GREEN, PINK, *OKABE_ITO)
DECADE = 0.15  # of a power of ten: less than that is drawn on an even axis


@dataclass(frozen=True)
class ParetoPoint:
    """One run: cost `x` as stored, perplexity `y`, `speed` in tokens per second."""

    run: str
    label: str
    kind: str
    x: float
    y: float
    speed: float | None = None


def pareto_front(points: Sequence[ParetoPoint], larger_x: bool) -> list[ParetoPoint]:
    """Pareto front from left to right: lowest `y`, smallest (or largest) `x`. `x` is rounded, as
    file headers differ by a few bytes."""
    sign = -1 if larger_x else 1
    best, front = math.inf, []
    for point in sorted(points, key=lambda p: (sign * float(f"{p.x:.3g}"), p.y)):
        if point.y < best:
            best = point.y
            front.append(point)
    return sorted(front, key=lambda p: p.x)


@dataclass(frozen=True)
class ComparableRuns:
    """Runs of one base model with perplexity on the same tokens; `key` is in the address."""

    key: str
    label: str
    rows: Sequence[RunRow]

    @cached_property
    def dense(self) -> float | None:
        """Perplexity of the dense model, as the newest of the runs measured it."""
        values = (row.figures.value("dense", PERPLEXITY) for row in self.rows)
        return next((value for value in values if value is not None), None)

    @property
    def axes(self) -> list[MetricKey]:
        """The costs the runs differ in; then those that at least one run has."""
        keys = [key for key in self._keys if self._values(key)]
        differing = [key for key in keys if _spread(self._values(key)) > MIN_SPREAD]
        return differing + [key for key in keys if key not in differing]

    @property
    def _keys(self) -> list[MetricKey]:
        final = (key for row in self.rows for key in row.figures.final_keys)
        sizes = ordered(key for key in final if key.family in (BYTES, LINEAR_BYTES) and key.series)
        return [AXES[0], *sizes, *AXES[1:]]

    def _values(self, key: MetricKey) -> list[float]:
        return [v for row in self.rows if (v := cost(row, key)) is not None]

    def points(self, key: MetricKey) -> list[ParetoPoint]:
        """The runs that have this cost, the newest first."""
        points = [point for row in self.rows if (point := _point(row, key))]
        best = {p.run for p in pareto_front(points, metric(key).better == "higher")}
        return [p for i, p in enumerate(points) if i < MAX_POINTS or p.run in best]


def _point(row: RunRow, key: MetricKey) -> ParetoPoint | None:
    x, y = cost(row, key), row.figures.final()
    if x is None or y is None:
        return None
    label = " · ".join(setting_summary(row.job)) or row.job.name
    speed = row.figures.final(TOKENS_PER_SECOND)
    return ParetoPoint(row.job.run, label, kind_title(row.job), x, y, speed)


def _spread(values: Sequence[float]) -> float:
    largest = max(map(abs, values), default=0.0)
    return (max(values) - min(values)) / largest if largest else 0.0


def cost(row: RunRow, key: MetricKey) -> float | None:
    """A figure of a run that can stand on the horizontal axis."""
    return row.size if key == SIZE else row.figures.final(key)


def groups(rows: Sequence[RunRow]) -> list[ComparableRuns]:
    by_conditions: dict[tuple[str, ...], list[RunRow]] = {}
    for row in rows:
        if row.job.state == State.SUCCEEDED and (key := comparable_by(row)):
            by_conditions.setdefault(key, []).append(row)
    largest_first = sorted(by_conditions.values(), key=len, reverse=True)
    return [ComparableRuns(same[0].job.run, _label(same[0]), same) for same in largest_first]


def _label(row: RunRow) -> str:
    figure = row.figures.final_row(PERPLEXITY)
    details = (figure.details if figure else None) or {}
    model = base_model(row.job).rstrip("/").rsplit("/", 1)[-1]
    parts = [model, str(details.get("corpus", "unknown text"))]
    if details.get("context"):
        windows = f"{details['windows']} × " if details.get("windows") else ""
        parts.append(f"{windows}{details['context']} tokens")
    return " · ".join(parts)


def chosen_group(options: Sequence[ComparableRuns], key: str) -> ComparableRuns | None:
    named = (g for g in options if key in {row.job.run for row in g.rows})
    return next(named, options[0] if options else None)


def tradeoff(
    points: Sequence[ParetoPoint], x: Metric, dense: float | None, note: str = ""
) -> Chart:
    """Perplexity over cost; `customdata` of a dot is its run; `dense`: before compression."""
    best = pareto_front(points, x.better == "higher")
    kinds = list(dict.fromkeys(p.kind for p in points))
    traces = [
        _dots([p for p in points if p.kind == kind], best, x, place)
        for place, kind in enumerate(kinds)
    ]
    front = go.Scatter(  # steps: between two runs of the front, only the worse is to be had
        x=[scale_of(x) * p.x for p in best],
        y=[p.y for p in best],
        mode="lines",
        line={"color": LIGHT.muted, "width": 1, "shape": "vh" if x.better == "higher" else "hv"},
        hoverinfo="skip",
        showlegend=False,
    )
    ys = [p.y for p in points] + ([dense] if dense else [])
    log = math.log10(max(ys, default=2.0) / min(ys, default=1.0)) >= DECADE
    up = log_axis("Perplexity", log_span(ys, right=0.2)) if log else axis("Perplexity", nticks=5)
    hint = f" ({x.better} is better)" if x.better in ("higher", "lower") else ""
    width = _width([scale_of(x) * p.x for p in points])
    across = axis(_unit_title(x) + hint, showgrid=False, range=width, nticks=5, tickangle=0)
    row = legend_row() if len(kinds) > 1 else {}
    looks = layout(view=x.name, xaxis=across, yaxis=up, hovermode="closest", **row)
    figure = go.Figure([front, *traces], looks)
    if dense:
        figure.add_shape(reference_line(y=dense))
        figure.add_annotation(  # unlike a shape, it wants the logarithm on a log axis
            text=f"dense {number(dense)}",
            xref="paper",
            x=1,
            xanchor="right",
            yanchor="top",
            y=math.log10(dense) if log else dense,
        )
    return Chart(figure, _frame(points, x), note, headline=of_front(len(best), len(points)))


def scale_of(x: Metric) -> float:
    """Factor from a stored value to the unit of the axis: per cent, MB, or 1."""
    return {"share": 100.0, "bytes": 1e-6}.get(x.form, 1.0)


def _unit_title(x: Metric) -> str:
    return f"{x.label}, MB" if x.form == "bytes" else x.title


def _frame(points: Sequence[ParetoPoint], x: Metric) -> pd.DataFrame:
    links = pd.Series([WIDGETS.run_link(p) for p in points], dtype=object)  # stay `Markup`
    columns = ["Setting", "Kind", QUALITY.title, SPEED.title, _unit_title(x)]
    figures = [(p.label, p.kind, p.y, p.speed, scale_of(x) * p.x) for p in points]
    frame = pd.DataFrame(figures, columns=columns)
    frame.insert(0, "Run", links)
    return frame.loc[:, ~frame.columns.duplicated()]


def _width(xs: Sequence[float]) -> list[float]:
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    room = max(0.12 * (high - low), 0.02 * abs(high)) or 1.0
    return [low - room, high + room]


def _dots(
    points: Sequence[ParetoPoint], best: Sequence[ParetoPoint], x: Metric, place: int
) -> go.Scatter:
    colour = COLOURS[place % len(COLOURS)]
    fastest = max((p.speed or 0.0 for p in points), default=0.0)
    on_front, named = {p.run for p in best}, {p.run for p in best[:LABELLED]}
    xs = [p.x for p in best]
    middle = (min(xs, default=0.0) + max(xs, default=0.0)) / 2
    fill = [colour if p.run in on_front else "rgba(0,0,0,0)" for p in points]
    return dots(
        [scale_of(x) * p.x for p in points],
        [p.y for p in points],
        colour,
        SYMBOLS[place % len(SYMBOLS)],
        [_hover(p, x) for p in points],
        name=points[0].kind,
        customdata=[p.run for p in points],
        text=[esc(p.label) if p.run in named else "" for p in points],
        textposition=["bottom left" if p.x > middle else "bottom right" for p in points],
        textfont={"color": LIGHT.text},
    ).update(
        mode="markers+text",
        marker_size=[_size(p.speed, fastest) for p in points],
        marker_color=fill,
        marker_opacity=1.0,
    )


def _size(speed: float | None, fastest: float) -> float:
    if not fastest:
        return PLAIN
    return max(SMALLEST, LARGEST * math.sqrt((speed or 0.0) / fastest))


def _hover(point: ParetoPoint, x: Metric) -> str:
    unit = " %" if x.form == "share" else ""
    speed = f"<br>{SPEED.label} {number(point.speed, 3)} tokens/s" if point.speed else ""
    return (
        f"<b>{esc(point.run)}</b> {esc(point.label)}<br>Perplexity {number(point.y)}"
        f"<br>{x.label} {format_value(x, point.x)}{unit}{speed}"
    )
