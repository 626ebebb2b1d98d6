"""How quick the store and the screen are with many runs.

    make bench-store
    make bench-store ARGS="--runs 1000"
    make bench-store ARGS="--postgres"

One real run on the toy model is copied, with its figures, histograms and curves, until there are
10,000 runs with 6 million curve points and 200,000 histograms: nothing new is measured. Each part
runs in a process of its own.

- reporter: four jobs report points as fast as they can while a page reads one of the curves.
  Beside it the limit: one process that gives the database the same points in plain statements.
- runs: the page *Runs*, made on the server: opened first, again, and after one new figure.
- curve: a curve of a million points, read as a chart needs it.
- queue: 1,000 queued runs: the next to start, and the status every page shows.
- start: a dashboard on an empty folder and on this one, until it answers.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import column, insert, select, table

from backend.metric_key import MetricKey
from backend.queue import scheduling, service
from backend.queue.actor import Actor
from backend.settings import settings
from backend.store import frames, tables
from backend.store.copies import has_file
from backend.store.dialects import dialect_of
from backend.store.session import engine_for, now_ms, reading, writing
from backend.store.states import State
from backend.store.tables import Attempt, Event, Job, Result
from benchmarks.screen.load import many_points, many_runs, many_snapshots
from benchmarks.screen.runs import SDS, carry_out
from benchmarks.screen.server import DATABASES, ROOT, dashboard, environment, reads
from benchmarks.shared import memory
from benchmarks.shared.timing import timed
from jobs.runtime import context as job_context
from jobs.runtime.row_buffer import MAX_ROWS
from tests import postgres
from tests.ui.lab import asked
from ui.pages.runs import page as runs_page
from ui.runs.rows import all_rows

POINTS, SNAPSHOTS = 600, 20  # of each copied run
WRITERS, WRITTEN = 4, 250_000
LONG_CURVE, QUEUED = 1_000_000, 1_000
TIMES = 5
ME = Actor("benchmark", "host")

Figures = dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default=10_000, type=int)
    parser.add_argument("--postgres", action="store_true", help="on a server made for it")
    parser.add_argument("--part", choices=[*PARTS, "writer"], help=argparse.SUPPRESS)
    parser.add_argument("--attempt", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def middle(act: Callable[[], Any], times: int = TIMES) -> tuple[float, float]:
    """Medians of the wall and processor seconds of a call."""
    wall, cpu = zip(*(timed(act) for _ in range(times)), strict=True)
    return median(wall), median(cpu)


# parts --------------------------------------------------------------------------------------------


def reporter() -> Figures:
    """Four jobs report at once; then the same points in plain statements."""
    attempts = [_running_job() for _ in range(WRITERS)]
    following = threading.Thread(target=_read_forever, args=(attempts[0][0],), daemon=True)
    following.start()
    writers = [_child("writer", "--attempt", str(attempt)) for _, attempt in attempts]
    found = [_figures(process) for process in writers]
    seconds = max(one["end"] for one in found) - min(one["start"] for one in found)
    points = WRITERS * WRITTEN
    return {
        "reporter_points_s": points / seconds,
        "reporter_points_cpu_s": points / sum(one["cpu_s"] for one in found),
        "slowest_commit_s": max(one["slowest_commit_s"] for one in found),
        "plain_points_s": _plain(WRITTEN) if has_file() else _plain_copies(WRITTEN),
    }


def writer(attempt: int) -> Figures:
    """One job: reports its points, and is done when all are on disk."""
    context = job_context.claim(attempt)
    commits: list[float] = []
    write = context._write

    def watched(*given: Any) -> None:
        commits.append(timed(lambda: write(*given))[0])

    context._write = watched  # type: ignore[method-assign]
    start, cpu = time.time(), time.process_time()
    context.start()
    loss = MetricKey("loss")
    for step in range(WRITTEN):
        context.metric(loss, 1 / (step + 1), step)
    context.finish("succeeded")
    cpu = time.process_time() - cpu
    return {"start": start, "end": time.time(), "cpu_s": cpu, "slowest_commit_s": max(commits)}


def _running_job() -> tuple[int, int]:
    """Ids of a running job and of its attempt, not yet claimed."""
    with writing() as session:
        job = Job(
            kind="sds",
            owner="benchmark",
            config={},
            config_hash="",
            state=State.RUNNING,
            created_at=now_ms(),
            queued_at=now_ms(),
        )
        session.add(job)
        session.flush()
        attempt = Attempt(job_id=job.id, n=1, token="benchmark", engine="local", launched_at=0)
        session.add(attempt)
        session.flush()
        return job.id, attempt.id


def _read_forever(job_id: int) -> None:
    while True:
        frames.chart_curves(job_id)
        time.sleep(1.0)


def _plain(points: int) -> float:
    """Points a second that SQLite takes from one process in plain statements, 20,000 at a time."""
    with TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder) / "plain.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(
            "CREATE TABLE points (job INTEGER, name TEXT, step INTEGER, at INTEGER, value REAL,"
            " PRIMARY KEY (job, name, step)) WITHOUT ROWID"
        )
        rows = [(1, "loss", step, now_ms(), 1 / (step + 1)) for step in range(points)]
        start = time.perf_counter()
        for first in range(0, points, MAX_ROWS):
            database.execute("BEGIN IMMEDIATE")
            some = rows[first : first + MAX_ROWS]
            database.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?)", some)
            database.execute("COMMIT")
        return points / (time.perf_counter() - start)


def _plain_copies(points: int) -> float:
    """The same for a server, which takes them by COPY."""
    plain = table("points", *map(column, ("job", "name", "step", "at", "value")))
    rows = [(1, "loss", step, now_ms(), 1 / (step + 1)) for step in range(points)]
    engine = engine_for(settings().url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE points (job BIGINT, name TEXT, step BIGINT, at BIGINT, value FLOAT8,"
            " PRIMARY KEY (job, name, step))"
        )
    start = time.perf_counter()
    for first in range(0, points, MAX_ROWS):
        with engine.begin() as connection:
            dialect_of(engine).insert_all(connection, plain, rows[first : first + MAX_ROWS])
    return points / (time.perf_counter() - start)


def runs() -> Figures:
    """*Runs* as the server makes it."""
    gc.freeze()  # as the dashboard does with all that it has imported

    def page() -> None:
        runs_page.draw(asked())

    def one_more() -> tuple[float, float]:
        newest = all_rows()[0].job.id
        with writing() as session:
            figure = Result(job_id=newest, stage="dense", family="ppl", series="")
            figure.value = time.time()
            session.merge(figure)
            session.add(Event(job_id=newest, at=now_ms(), type="figure", actor="benchmark"))
        return timed(page)

    cold = timed(page)
    warm = middle(page)
    wall, cpu = zip(*(one_more() for _ in range(TIMES)), strict=True)
    return {
        "runs_cold_s": cold[0],
        "runs_cold_cpu_s": cold[1],
        "runs_warm_s": warm[0],
        "runs_after_one_figure_s": median(wall),
        "runs_after_one_figure_cpu_s": median(cpu),
        "runs_peak_mb": memory.peak() / 1e6,
    }


def curve() -> Figures:
    """A curve of a million points, as a chart reads it."""
    job_id, _ = _running_job()
    many_points(select(Job.id).where(Job.id == job_id), LONG_CURVE)
    seconds, _ = middle(lambda: frames.chart_curves(job_id), 3)
    return {"curve_s": seconds, "curve_points_sent": len(frames.chart_curves(job_id))}


def queue() -> Figures:
    """1,000 queued runs."""
    rows = [
        {
            "kind": "sds",
            "owner": f"person {n % 7}",
            "config": {},
            "config_hash": "",
            "environment": {},
            "state": State.QUEUED,
            "desired": "run",
            "created_at": now_ms(),
            "queued_at": now_ms(),
            "tags": [],
            "stage": "",
            "name": "",
            "note": "",
        }
        for n in range(QUEUED)
    ]
    with writing() as session:
        session.execute(insert(Job), rows)
    status = scheduling.status()
    positions = middle(lambda: [status.position(job.id) for job in status.queued])[0]

    def first() -> None:
        with reading() as session:
            session.scalars(scheduling.launch_order(now_ms()).limit(1)).first()

    found = {
        "queue_next_ms": middle(first)[0] * 1e3,
        "queue_status_ms": middle(scheduling.status)[0] * 1e3,
        "queue_positions_ms": positions * 1e3,
    }
    service.cancel([job.id for job in status.queued], ME)
    return found


PARTS: dict[str, Callable[[], Figures]] = {
    "runs": runs,
    "curve": curve,
    "queue": queue,
    "reporter": reporter,
}


# all of it ----------------------------------------------------------------------------------------


def starts(folders: dict[str, Path], rounds: int = 3) -> Figures:
    """Seconds until a dashboard answers, on each folder in turn."""
    taken: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(rounds):
        for name, folder in folders.items():
            start = time.perf_counter()
            with dashboard(folder):
                taken[name].append(time.perf_counter() - start)
    return {f"start_{name}_s": median(seconds) for name, seconds in taken.items()}


@contextmanager
def folders(scratch: Path, on_server: bool) -> Iterator[tuple[Path, Path]]:
    """A data folder to be filled, and an empty one; their tables in files, or on a server that
    waits for its disk as any does."""
    both = scratch / "data", scratch / "empty"
    for folder in both:
        folder.mkdir()
    if not on_server:
        yield both
        return
    with postgres.server(options=("shared_buffers=512MB", "max_wal_size=4GB")) as server:
        for folder in both:
            server.execute(f"CREATE DATABASE {folder.name}")
            DATABASES[folder] = server.url.format(folder.name)
        yield both


def build(data: Path, number: int) -> float:
    """One real run, and its copies; returns the megabytes of the database."""
    carry_out(data, [SDS])
    with reads(data):
        many_runs(number)
        many_snapshots(SNAPSHOTS)
        many_points(select(Job.id).where(Job.id > 1), POINTS)
        engine = engine_for(settings().url)
        dialect = dialect_of(engine)
        with engine.begin() as connection:
            dialect.continue_numbering(connection, tables.Table.metadata)
        dialect.shrink_log(engine)
        return dialect.bytes(engine) / 1e6


def _child(part: str, *more: str, data: Path | None = None) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "benchmarks.store", "--part", part, *more]
    variables = environment(data) if data else dict(os.environ)
    return subprocess.Popen(line, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


def _figures(process: subprocess.Popen[str]) -> Figures:
    out, _ = process.communicate()
    if process.returncode:
        sys.exit("A part of the benchmark failed.")
    found: Figures = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    chosen = arguments()
    if chosen.part:
        act = partial(writer, chosen.attempt) if chosen.attempt else PARTS[chosen.part]
        print(json.dumps(act()))
        return
    with (
        TemporaryDirectory() as scratch,
        folders(Path(scratch), chosen.postgres) as (data, empty),
    ):
        found: Figures = {"runs": chosen.runs, "database_mb": build(data, chosen.runs)}
        for part in PARTS:
            found |= _figures(_child(part, data=data))
        found |= starts({"empty": empty, "full": data})
    table = Table("figure", "value", title="Store and screen with many runs")
    for name, value in found.items():
        table.add_row(name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
