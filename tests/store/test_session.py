"""Transactions that survive a kill, migrations that match the tables, curves thinned in SQL."""

import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from filelock import FileLock
from sqlalchemy import insert
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from backend.metric_key import MetricKey
from backend.settings import Settings, settings
from backend.statistics.tensors import TensorProfile
from backend.store import frames, queries, tensors
from backend.store.dialects import sqlite
from backend.store.migrate import MIGRATIONS, newest_revision
from backend.store.session import engine_for, writing
from backend.store.tables import Job, MetricPoint, SavedView, Table
from jobs.runtime.row_buffer import profile_row, upsert
from tests.queue.conftest import bare_job, change


@pytest.fixture
def store(tables: Settings) -> Path:
    return tables.root


def new_job(**values: object) -> Job:
    with writing() as session:
        session.add(job := bare_job(**values))
    return job


def test_the_newest_migration_knows_the_tables_the_code_declares() -> None:
    """A change of the tables takes a migration, with the digest of the new ones."""
    made = [CreateTable(table) for table in Table.metadata.sorted_tables]
    made += [CreateIndex(each) for table in Table.metadata.sorted_tables for each in table.indexes]
    written = sorted(str(each.compile(dialect=sqlite_dialect())) for each in made)
    (newest,) = (MIGRATIONS / "versions").glob(f"{newest_revision()}_*.py")
    assert sha256("".join(written).encode()).hexdigest() == run_path(str(newest))["tables"]


def test_an_error_inside_a_transaction_writes_nothing(store: Path) -> None:
    with pytest.raises(RuntimeError), writing() as session:
        session.add(bare_job())
        session.flush()
        raise RuntimeError
    assert queries.jobs() == []


def test_a_state_that_does_not_exist_is_refused(store: Path) -> None:
    with pytest.raises(Exception, match=r"(?i)check constraint"):
        new_job(state="happy")


def test_readers_do_not_wait_for_a_writer(store: Path) -> None:
    job = new_job()
    with writing() as session:
        session.get_one(Job, job.id).name = "renamed"
        session.flush()
        began = time.monotonic()
        assert queries.job(job.id).name == ""  # the last committed state, at once
        assert time.monotonic() - began < 10  # not the 30 s a writer would wait
    assert queries.job(job.id).name == "renamed"


def test_the_cursor_moves_only_when_something_changed(store: Path) -> None:
    job = new_job()
    before = queries.cursor()
    assert queries.cursor() == before
    change(Job, job.id, done=0.5)
    assert queries.cursor() != before


def test_profiles_come_back_as_they_were_stored(store: Path) -> None:
    values = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
    profile = TensorProfile("a.weight", 0, "a", "dense", "magnitude", values, step=7)
    new_job(id=1)
    with writing() as session:
        twice = [profile_row(1, profile)] * 2  # a resumed attempt repeats itself
        upsert(session.connection(), twice)
    (found,) = tensors.profiles(1, "a.weight", "magnitude")
    np.testing.assert_array_equal(found.values, values)
    assert (found.stage, found.step, found.module) == ("dense", 7, "a")
    assert frames.profile_names(1).values.tolist() == [
        ["a.weight", 0, "a", "dense", "magnitude", 7]
    ]
    assert tensors.profiles(1, "a.weight", "scale") == []


@pytest.mark.sqlite("a turn of its writers")
def test_a_frozen_writer_holds_the_others_up_for_a_while_only(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    with FileLock(f"{engine_for(settings().url).url.database}-turn"), writing() as other:
        other.add(SavedView(name="small", query="q=sds", owner="me", saved_at=0))
    assert [view.name for view in queries.views()] == ["small"]


def test_a_character_that_is_no_text_hides_no_run(store: Path) -> None:
    configs = ({"model": "toy", "prompt": "\0"}, {"model": "toy", "prompt": "\ud800"})
    for config in (*configs, {"model": "toy", "prompt": "😀 \\u0000 is written so"}):
        new_job(config=config)
    new_job(config={"model": "odd", "prompt": "😀"})
    assert [job.config["model"] for job in queries.jobs()] == ["odd", "toy", "toy", "toy"]
    assert [queries.job(number).config for number in (1, 2)] == [*configs]


POINTS = 5000
LOSS = MetricKey("loss", "sds")
OTHERS = [  # whose keys differ from it in one part each
    MetricKey("rate", "sds"),
    MetricKey("loss"),
    MetricKey("loss", "sds", "a"),
    MetricKey("loss", "sds", axis="block"),
]


@pytest.fixture
def values(tables: Settings) -> np.ndarray:
    """Of a noisy curve with two peaks, at every third step from 7 on; and a short curve."""
    made = np.random.default_rng(0).normal(size=POINTS)
    made[[1234, 4321]] = 50, -50
    points = [asdict(LOSS) | {"step": 7 + 3 * i, "value": v} for i, v in enumerate(made.tolist())]
    for other in OTHERS:
        points += [asdict(other) | {"step": step, "value": step} for step in range(3)]
    new_job(id=1)
    with writing() as session:
        session.execute(insert(MetricPoint), [{"job_id": 1, "at": 0, **point} for point in points])
    return made


def test_each_range_keeps_its_extremes_and_the_curve_its_ends(
    values: np.ndarray,
) -> None:
    span = frames.spans(1)[LOSS]
    assert (span.points, span.first, span.last) == (POINTS, 7, 7 + 3 * (POINTS - 1))
    outline = frames.outline(1, LOSS, span, 100)
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
    whole, reduced = frames.chart_curves(1), frames.chart_curves(1, most=400)
    assert len(whole) == POINTS + 3 * len(OTHERS) and not whole.attrs.get(frames.REDUCED)
    assert len(reduced) <= 400 and reduced.attrs[frames.REDUCED]
    lines = frames.by_key(reduced)
    assert (lines[LOSS]["value"].min(), lines[LOSS]["value"].max()) == (-50, 50)
    assert {*lines} == {LOSS, *OTHERS}
    assert all(points.attrs[frames.REDUCED] for points in lines.values())
    assert all(lines[key]["value"].tolist() == [0, 1, 2] for key in OTHERS)
    assert len(frames.curves(1)) == POINTS + 3 * len(OTHERS)
