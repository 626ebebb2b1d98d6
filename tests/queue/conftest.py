"""A data folder with tables, the counting kind, and a supervisor's loop driven by hand."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend.queue.actor import Actor
from backend.queue.artifacts import work_folder
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for, writing
from backend.store.states import LIVE, QUICK_SLOT, State
from backend.store.tables import Job, Slot, Table
from jobs.kind import kinds
from jobs.submit import submit
from tests.conftest import Given
from tests.fork_engine import ForkEngine
from tests.waiting import LIMIT_S, awaited

HOST = Actor("mira", "host")
Wait = Callable[..., State]


@pytest.fixture
def queue(data_dir: Path, given: Given) -> Iterator[Path]:
    given(PLUGINS='["tests.plugins.job_kind"]', STOP_GRACE="3")
    kinds.cache_clear()
    upgrade()
    yield data_dir
    for job in queries.jobs(LIVE):  # leave no process behind, whatever a test did
        for attempt in queries.attempts(job.id):
            if attempt.engine_ref and "pid" in attempt.engine_ref:
                LocalEngine(1).kill(attempt.engine_ref)
    engine_for.cache_clear()
    kinds.cache_clear()


@pytest.fixture
def loop(queue: Path) -> SupervisorLoop:
    """Its jobs are forks of a warm process."""
    return SupervisorLoop(ForkEngine(1))


@pytest.fixture
def wait(loop: SupervisorLoop) -> Wait:
    """Turns the loop until a job is in one of the states, or a condition holds; fails when the job
    has not changed for 20 s."""

    def until(run: int, *states: State, when: Callable[[], bool] | None = None) -> State:
        before, deadline = None, 0.0
        while True:
            loop.turn()
            job = queries.job(run)
            if job.state in states or (when and when()):
                return State(job.state)
            signs = (job.state, job.stage, job.done, job.attempts_made)
            if signs != before:
                before, deadline = signs, time.monotonic() + LIMIT_S
            awaits = awaited(when) if when else states
            assert time.monotonic() < deadline, f"{job.run}, {signs}, waits for {awaits}"
            time.sleep(0.02)

    return until


def succeeded(wait: Wait, kind: str, values: dict[str, Any]) -> Job:
    """A run of this kind and config that has come to its end."""
    job = submit(kind, values, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED, queries.job(job.id).error
    return queries.job(job.id)


def curve(run: int, family: str) -> list[float]:
    """The values of a family of curves, in the order of their steps."""
    curves = frames.curves(run)
    return curves[curves["family"] == family]["value"].tolist()


def bare_job(**values: Any) -> Job:
    """A row of a run, with what every row has."""
    row = {
        "kind": "sds",
        "owner": "mira",
        "config": {},
        "config_hash": "",
        "created_at": 1,
        "queued_at": 1,
    }
    return Job(**(row | values))


def change(table: type[Table], key: Any, **values: Any) -> None:
    """Change the row with this primary key, such as the number of a run."""
    with writing() as session:
        row = session.get_one(table, key)
        for name, value in values.items():
            setattr(row, name, value)


def process_of(run: int) -> psutil.Process:
    """The process of a run's newest attempt."""
    ref = queries.attempts(run)[-1].engine_ref
    return psutil.Process(ref["pid"])


def running(run: int, step: int = 1) -> Callable[[], bool]:
    """A condition: the run has finished at least `step` steps."""
    return lambda: (work_folder(queries.job(run).run) / f"step-{step}").exists()


def free_slots() -> int:
    """How many jobs could be started."""
    with writing() as session:
        free = (Slot.attempt_id.is_(None), Slot.number != QUICK_SLOT)
        return session.query(Slot).where(*free).count()


def beats(run: int, n: int) -> bool:
    """Whether attempt `n`, the newest, has begun."""
    attempts = queries.attempts(run)
    return len(attempts) == n and attempts[-1].started_at is not None
