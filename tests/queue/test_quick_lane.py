"""A job of seconds does not wait for one of hours."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from backend.queue import scheduling
from backend.queue.lifecycle import end_attempt
from backend.queue.service import enqueue
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import writing
from backend.store.states import Lane, State
from backend.store.tables import Attempt, Job
from tests.queue.conftest import HOST, Wait, process_of, running
from tests.queue.scripted_engine import ScriptedEngine
from ui.runs.queue_eta import start_times


def cost(seconds: float, size: float = 1e8, open_ended: bool = False) -> SimpleNamespace:
    return SimpleNamespace(seconds=seconds, bytes=int(size), open_ended=open_ended, letters=0)


LONG, QUICK = cost(7200.0), cost(6.0)


def added(of: SimpleNamespace) -> int:
    return enqueue("count", {"steps": 100}, HOST, cost=of).id


def started(*jobs: int) -> list[bool]:
    return [queries.job(job).state != State.QUEUED for job in jobs]


def ended(job: int) -> None:
    with writing() as session:
        attempt = session.query(Attempt).filter_by(job_id=job).one()
        attempt.outcome = "succeeded"
        end_attempt(session, attempt, 0)


@pytest.mark.parametrize("of", [cost(60.0), cost(6.0, 2e9), cost(6.0, open_ended=True), LONG])
def test_what_is_long_large_or_unknown_waits_for_a_slot(queue: Path, of: SimpleNamespace) -> None:
    assert queries.job(added(of)).lane == Lane.SLOTS


def test_a_job_of_seconds_overtakes(queue: Path) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    first, second = added(LONG), added(LONG)
    loop.turn()
    quick, next_quick = added(QUICK), added(QUICK)
    assert [job.id for job in scheduling.queued()] == [quick, next_quick, second]
    loop.turn()
    assert started(first, second, quick, next_quick) == [True, False, True, False]
    ended(quick)
    loop.turn()
    assert started(second, next_quick) == [False, True]


def test_a_cluster_has_no_place_beside_the_slots(queue: Path) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1, remote=True))
    jobs = [added(LONG), added(QUICK)]
    loop.turn()
    assert started(*jobs) == [True, False]


@pytest.mark.fresh_process
def test_it_stands_back_for_others(wait: Wait, loop: SupervisorLoop) -> None:
    long, quick = added(LONG), added(QUICK)
    for job in (long, quick):
        wait(job, when=running(job))
    ordinary = psutil.Process().nice()
    assert [process_of(job).nice() for job in (long, quick)] == [ordinary, min(19, ordinary + 10)]


def test_its_start_is_told_truly(queue: Path) -> None:
    long, quick, waiting = (
        Job(id=n, kind="count", config={"steps": 1}, state=state, lane=lane, eta_s=eta)
        for n, state, lane, eta in (
            (1, "running", Lane.SLOTS, 3600.0),
            (2, "queued", Lane.QUICK, None),
            (3, "queued", Lane.SLOTS, None),
        )
    )
    status = scheduling.QueueStatus([long], [quick, waiting], {}, True)
    assert start_times(status) == {2: 0.0, 3: 3600.0}
