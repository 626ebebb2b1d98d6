"""Long curves keep their peaks when they are reduced."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from sqlalchemy import insert

from backend.metric_key import MetricKey
from backend.settings import Settings
from backend.store import curves, frames
from backend.store.session import writing
from backend.store.tables import Job, MetricPoint

POINTS = 5000
LOSS = MetricKey("loss", "sds")
OTHERS = [  # whose keys differ from it in one part each
    MetricKey("rate", "sds"), MetricKey("loss"), MetricKey("loss", "sds", "a"),
    MetricKey("loss", "sds", axis="block"),
]  # fmt: skip


@pytest.fixture
def values(tables: Settings) -> np.ndarray:
    """Of a noisy curve with two peaks, at every third step from 7 on; and a short curve."""
    made = np.random.default_rng(0).normal(size=POINTS)
    made[[1234, 4321]] = 50, -50
    points = [asdict(LOSS) | {"step": 7 + 3 * i, "value": v} for i, v in enumerate(made.tolist())]
    for other in OTHERS:
        points += [asdict(other) | {"step": step, "value": step} for step in range(3)]
    with writing() as session:
        session.add(Job(id=1, kind="sds", owner="m", config={}, config_hash="", created_at=0,
                        queued_at=0))  # fmt: skip
        session.flush()
        session.execute(insert(MetricPoint), [{"job_id": 1, "at": 0, **point} for point in points])
    return made


def test_each_range_keeps_its_lowest_and_highest_point_and_the_curve_its_ends(
    values: np.ndarray,
) -> None:
    span = curves.spans(1)[LOSS]
    assert (span.points, span.first, span.last) == (POINTS, 7, 7 + 3 * (POINTS - 1))
    outline = curves.outline(1, LOSS, span, 100)
    width = -(-(span.last - span.first + 1) // 100)
    ranges = np.arange(POINTS) * 3 // width
    expected = {
        7 + 3 * int(at)
        for n in np.unique(ranges)
        for part in [np.flatnonzero(ranges == n)]
        for at in (part[values[part].argmin()], part[values[part].argmax()])
    }
    expected |= {span.first, span.last}
    assert [point.step for point in outline] == sorted(expected)
    assert all(point.value == values[(point.step - 7) // 3] for point in outline)


def test_a_chart_is_given_no_more_points_than_it_can_show(values: np.ndarray) -> None:
    whole, reduced = frames.shown_curves(1), frames.shown_curves(1, most=400)
    assert len(whole) == POINTS + 3 * len(OTHERS) and not whole.attrs.get(frames.REDUCED)
    assert len(reduced) <= 400 and reduced.attrs[frames.REDUCED]
    lines = frames.by_key(reduced)
    assert (lines[LOSS]["value"].min(), lines[LOSS]["value"].max()) == (-50, 50)
    assert {*lines} == {LOSS, *OTHERS}
    assert all(points.attrs[frames.REDUCED] for points in lines.values())
    assert all(lines[key]["value"].tolist() == [0, 1, 2] for key in OTHERS)
    assert len(frames.curves(1)) == POINTS + 3 * len(OTHERS)
