"""Curves and statistics of a run as data frames, for pages and charts; curves too long to be drawn
whole, reduced by the database to what can be seen. Separate from `queries`, so
that listing runs does not import pandas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from sqlalchemy import ColumnElement, Row, func, literal, select
from sqlalchemy.orm import aliased

from backend.metric_key import KEY_COLUMNS, MetricKey
from backend.store import queries
from backend.store.queries import POINT_COLUMNS, rows_among
from backend.store.session import reading
from backend.store.tables import MetricPoint

REDUCED = "reduced"
MOST_POINTS = 20_000  # of all curves of a run together; more than a screen can show


@dataclass(frozen=True)
class CurveSpan:
    """The number of points of a curve, and its first and last step."""

    points: int
    first: int
    last: int


def spans(job_id: int) -> dict[MetricKey, CurveSpan]:
    key = [getattr(MetricPoint, name) for name in KEY_COLUMNS]
    columns = (func.count(), func.min(MetricPoint.step), func.max(MetricPoint.step))
    query = select(*key, *columns).where(MetricPoint.job_id == job_id)
    with reading() as session:
        rows = session.execute(query.group_by(*key).order_by(*key))
        return {MetricKey(*row[: len(key)]): CurveSpan(*row[len(key) :]) for row in rows}


def outline(job_id: int, key: MetricKey, span: CurveSpan, buckets: int) -> list[Row[Any]]:
    """A curve as it looks on a screen: of each of `buckets` equal ranges of steps the points with
    the lowest and the highest value, so that no peak is lost; and its first and last point. Rows
    as of `queries.curve_points`.

    The database looks up both by the key of the table, range after range: nothing is sorted, and
    only these points are read into memory.
    """
    width = -(-(span.last - span.first + 1) // buckets)
    start = select(literal(span.first).label("step")).cte("ranges", recursive=True)
    ranges = start.union_all(select(start.c.step + width).where(start.c.step + width <= span.last))
    point = aliased(MetricPoint)
    inside = (
        select(point.step)
        .where(*_of_curve(point, job_id, key))
        .where(point.step.between(ranges.c.step, ranges.c.step + width - 1))
        .limit(1)
        .correlate(ranges)
    )
    low, high = (
        inside.order_by(value, point.step).scalar_subquery()
        for value in (point.value, point.value.desc())
    )
    with reading() as session:
        ends = session.execute(select(low, high).select_from(ranges)).all()
        found = {step for pair in ends for step in pair if step is not None}
        steps = sorted(found | {span.first, span.last})
        query = select(*POINT_COLUMNS).where(*_of_curve(MetricPoint, job_id, key))
        return [*rows_among(session, query.order_by(MetricPoint.step), MetricPoint.step, steps)]


def _of_curve(
    point: type[MetricPoint], job_id: int, key: MetricKey
) -> Iterator[ColumnElement[bool]]:
    """The conditions for the points of one curve."""
    yield point.job_id == job_id
    for name in KEY_COLUMNS:
        yield getattr(point, name) == getattr(key, name)


def curves(run: str | int) -> pd.DataFrame:
    """All curve points of a run: the columns of their key, step, value, at."""
    return _points(queries.curve_points(run))


def shown_curves(run: str | int, most: int = MOST_POINTS) -> pd.DataFrame:
    """The same for a chart: long curves are reduced to their lowest and highest points, so that
    there are about `most` at most. Such frames have the attribute `REDUCED`."""
    job_id = queries.job_id(run)
    found = spans(job_id)
    if sum(span.points for span in found.values()) <= most:
        return curves(job_id)
    buckets = max(1, most // len(found) // 2 - 1)
    outlines = (outline(job_id, key, span, buckets) for key, span in found.items())
    points = _points([row for outline in outlines for row in outline])
    points.attrs[REDUCED] = True
    return points


def by_key(points: pd.DataFrame) -> dict[MetricKey, pd.DataFrame]:
    return {MetricKey(*key): rows for key, rows in points.groupby([*KEY_COLUMNS], sort=False)}


def _points(rows: list[Row[Any]]) -> pd.DataFrame:
    names = [column.key for column in queries.POINT_COLUMNS]
    return pd.DataFrame([*map(tuple, rows)], columns=names)


def tensor_table(run: str | int) -> pd.DataFrame:
    """One row per tensor, stage and step (`queries.tensor_rows`); empty if there are none."""
    return pd.DataFrame(queries.tensor_rows(run))


def profile_names(run: str | int) -> pd.DataFrame:
    """The stored profiles of a run: `queries.PROFILE_COLUMNS`."""
    return pd.DataFrame(queries.profile_rows(run), columns=[*queries.PROFILE_COLUMNS])
