"""Curves and statistics of a run as data frames, for pages and charts.

The database reduces curves that are too long to be drawn to their visible points. This module is
separate from `queries`, so that listing runs does not import pandas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from sqlalchemy import ColumnElement, Row, func, literal, select
from sqlalchemy.orm import aliased

from backend.metric_key import KEY_COLUMNS, MetricKey
from backend.store import queries
from backend.store.queries import POINT_COLUMNS, rows_among
from backend.store.session import fetched_rows, reading
from backend.store.tables import MetricPoint

REDUCED = "reduced"
LARGEST = 1e300  # value of a point that is drawn: no infinity, and no number that overflows
MAX_POINTS = 20_000  # points of all curves of a run, more than a screen can show


@dataclass(frozen=True)
class CurveSpan:
    """The number of points of a curve, and its first and last step."""

    points: int
    first: int
    last: int


def spans(job_id: int) -> dict[MetricKey, CurveSpan]:
    """The spans of all curves of a run."""
    key = [getattr(MetricPoint, name) for name in KEY_COLUMNS]
    columns = (func.count(), func.min(MetricPoint.step), func.max(MetricPoint.step))
    query = select(*key, *columns).where(MetricPoint.job_id == job_id)
    rows = fetched_rows(query.group_by(*key).order_by(*key))
    return {MetricKey(*row[: len(key)]): CurveSpan(*row[len(key) :]) for row in rows}


def outline(job_id: int, key: MetricKey, span: CurveSpan, buckets: int) -> list[Row[Any]]:
    """The visible points of a long curve: the lowest and the highest of each of `buckets` equal
    ranges of steps, so that no peak is lost, and the first and last point.

    The database searches each range by the table's key: it sorts nothing, and only these points are
    read into memory.

    Returns:
        Rows like those of `queries.curve_points`.
    """
    width = -(-(span.last - span.first + 1) // buckets)
    start = select(literal(span.first).label("step")).cte("ranges", recursive=True)
    ranges = start.union_all(select(start.c.step + width).where(start.c.step + width <= span.last))
    point = aliased(MetricPoint)
    in_range = (
        select(point.step)
        .where(*_of_curve(point, job_id, key))
        .where(point.step.between(ranges.c.step, ranges.c.step + width - 1))
        .limit(1)
        .correlate(ranges)
    )
    low, high = (
        in_range.order_by(value, point.step).scalar_subquery()
        for value in (point.value, point.value.desc())
    )
    with reading() as session:
        ends = session.execute(select(low, high).select_from(ranges)).all()
        extremes = {step for pair in ends for step in pair if step is not None}
        steps = sorted(extremes | {span.first, span.last})
        query = select(*POINT_COLUMNS).where(*_of_curve(MetricPoint, job_id, key))
        return [*rows_among(session, query.order_by(MetricPoint.step), MetricPoint.step, steps)]


def samples(job_id: int, key: MetricKey, span: CurveSpan, points: int) -> list[tuple[int, float]]:
    """Step and finite value of about `points` points of a curve at equal distances, and of its last
    point."""
    stride = max(1, (span.last - span.first) // points)
    is_sampled = (MetricPoint.step - span.first) % stride == 0
    query = select(MetricPoint.step, MetricPoint.value).where(
        *_of_curve(MetricPoint, job_id, key),
        is_sampled | (MetricPoint.step == span.last),
        MetricPoint.value.between(-LARGEST, LARGEST),
    )
    return [row._tuple() for row in fetched_rows(query.order_by(MetricPoint.step))]


def _of_curve(
    point: type[MetricPoint], job_id: int, key: MetricKey
) -> Iterator[ColumnElement[bool]]:
    """The conditions for the points of one curve."""
    yield point.job_id == job_id
    for name in KEY_COLUMNS:
        yield getattr(point, name) == getattr(key, name)


def curves(run: str | int) -> pd.DataFrame:
    """All curve points of a run: columns of the metric key, step, value, at."""
    return _points(queries.curve_points(run))


def chart_curves(run: str | int, most: int = MAX_POINTS) -> pd.DataFrame:
    """The curve points of a run for a chart, reduced to about `most` points.

    Long curves are reduced to their lowest and highest points. A reduced frame has the attribute
    `REDUCED`."""
    job_id = queries.job_id(run)
    curve_spans = spans(job_id)
    if sum(span.points for span in curve_spans.values()) <= most:
        return curves(job_id)
    buckets = max(1, most // len(curve_spans) // 2 - 1)
    outlines = (outline(job_id, key, span, buckets) for key, span in curve_spans.items())
    points = _points([row for outline in outlines for row in outline])
    points.attrs[REDUCED] = True
    return points


def by_key(points: pd.DataFrame) -> dict[MetricKey, pd.DataFrame]:
    """Curve points grouped by metric key."""
    return {MetricKey(*key): rows for key, rows in points.groupby([*KEY_COLUMNS], sort=False)}


def _points(rows: list[Row[Any]]) -> pd.DataFrame:
    names = [column.key for column in queries.POINT_COLUMNS]
    return pd.DataFrame([*map(tuple, rows)], columns=names)


def tensor_table(run: str | int) -> pd.DataFrame:
    """Tensor statistics, one row per tensor, stage and step (`queries.tensor_rows`)."""
    return pd.DataFrame(queries.tensor_rows(run))


def profile_names(run: str | int) -> pd.DataFrame:
    """The recorded profiles of a run, with the columns `queries.PROFILE_COLUMNS`."""
    return pd.DataFrame(queries.profile_rows(run), columns=[*queries.PROFILE_COLUMNS])
