"""Curves and statistics of a run as data frames, for pages and charts. Separate from `queries`, so
that listing runs does not import pandas."""

from typing import Any

import pandas as pd
from sqlalchemy import Row

from backend.metric_key import KEY_COLUMNS, MetricKey
from backend.store import curves as long_curves
from backend.store import queries

REDUCED = "reduced"
MOST_POINTS = 20_000  # of all curves of a run together; more than a screen can show


def curves(run: str | int) -> pd.DataFrame:
    """All curve points of a run: the columns of their key, step, value, at."""
    return _points(queries.curve_points(run))


def shown_curves(run: str | int, most: int = MOST_POINTS) -> pd.DataFrame:
    """The same for a chart: long curves are reduced to their lowest and highest points, so that
    there are about `most` at most. Such frames have the attribute `REDUCED`."""
    job_id = queries.job_id(run)
    spans = long_curves.spans(job_id)
    if sum(span.points for span in spans.values()) <= most:
        return curves(job_id)
    buckets = max(1, most // len(spans) // 2 - 1)
    outlines = (long_curves.outline(job_id, key, span, buckets) for key, span in spans.items())
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
    """The stored profiles of a run: columns tensor, block, module, stage, name, step."""
    columns = ["tensor", "block", "module", "stage", "name", "step"]
    return pd.DataFrame(queries.profile_rows(run), columns=columns)
