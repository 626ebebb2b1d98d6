"""Two machines on one database: who decides what, when both do at the same time."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text, update

from backend.errors import ForbiddenError
from backend.queue import labels, lifecycle, scheduling, service, supervisor
from backend.queue.actor import Actor
from backend.queue.engines import local
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries, session
from backend.store import session as store_session
from backend.store.dialects.base import NamedLock
from backend.store.session import DatabaseLock, engine_for, locked, now_ms, reading, writing
from backend.store.states import State
from backend.store.tables import Attempt, Job
from tests.conftest import Given
from tests.queue.conftest import HOST
from tests.queue.scripted_engine import ScriptedEngine
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("on_server")
DAY_MS = 86_400_000
CUT_OFF = (
    "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
    " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
)
HOLDER = """
from backend.settings import settings
from backend.store.dialects.base import NamedLock
from backend.store.session import DatabaseLock
from backend.store.session import engine_for
lock = DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)
print(lock.is_held(), flush=True)
input()
"""


@pytest.fixture
def lead(queue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseLock]:
    """The right of this machine to supervise, which it does not have yet."""
    monkeypatch.setattr(session, "LOCK_RETRY_S", 0.0)
    lock = DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)
    yield lock
    lock.release()


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What calls return or raise that run at the same time, in threads."""
    results: list[object] = [None] * len(acts)
    together = threading.Barrier(len(acts))

    def one(place: int) -> None:
        together.wait()
        try:
            results[place] = acts[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_a_machine_takes_over_when_the_supervisor_of_another_dies(lead: DatabaseLock) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        assert not lead.is_held()
        other.kill()
    until(lead.is_held)


def test_a_supervisor_that_is_cut_off_starts_nothing_until_it_leads_again(
    lead: DatabaseLock, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(IDLE_EXIT="0.5")
    job = service.enqueue("count", {}, HOST)
    other = DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR)
    assert lead.is_held() and lead.was_held
    with writing() as session:
        session.execute(text(CUT_OFF))
    until(other.is_held)
    engine = ScriptedEngine(slots=1)
    turns: list[bool] = []

    def wake(_: float) -> None:  # between two looks
        turns.append(bool(engine.launched))
        if len(turns) == 3:
            other.release()
        if len(turns) == 6:
            service.cancel([job.id], HOST)
            engine.end(engine.launched[0], "stopped", 75)

    monkeypatch.setattr(supervisor.time, "sleep", wake)
    supervisor.run_until_idle(SupervisorLoop(engine), lead)
    assert turns[:3] == [False] * 3 and turns[5]


def test_a_run_of_another_machine_is_left_to_it_until_it_is_silent_for_long(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SupervisorLoop(local.LocalEngine(1))
    job = service.enqueue("count", {}, HOST)
    there = local.reference(os.getpid()) | {"host": "gpu-2", "identity": "another boot/1"}
    with monkeypatch.context() as patch:
        patch.setattr(loop.engine, "launch", lambda _: there)
        loop.turn()
    loop.turn()
    (attempt,) = queries.attempts(job.id)
    assert attempt.ended_at is None and queries.job(job.id).state == State.STARTING
    loop.engine.kill(there)  # of the process of that number here
    beat_at(attempt.id, 1000 * settings().offline_s)
    loop.turn()
    assert queries.attempts(job.id)[0].ended_at is None
    beat_at(attempt.id, 1000 * settings().offline_s + supervisor.SHUTDOWN_GRACE_MS + 1000)
    loop.engine._slots = 0  # nothing is started again
    loop.turn()
    assert queries.attempts(job.id)[0].ended_at and queries.job(job.id).state == State.QUEUED


def beat_at(attempt: int, ago_ms: float) -> None:
    with writing() as session:
        moment = store_session.database_ms(session) - int(ago_ms)
        session.execute(update(Attempt).where(Attempt.id == attempt).values(beat_at=moment))


@pytest.mark.parametrize("off_by", [DAY_MS, -DAY_MS])
def test_the_clock_of_a_machine_may_be_wrong(
    queue: Path, monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    loop.turn()
    first = service.enqueue("count", {}, HOST)
    monkeypatch.setattr(store_session, "now_ms", lambda: now_ms() + off_by)
    second = service.enqueue("count", {}, HOST, priority=0)
    assert scheduling.status().supervisor_alive
    assert [job.id for job in scheduling.queued()] == [first.id, second.id]
    loop.turn()
    assert queries.job(first.id).state == State.STARTING
    with reading() as session:
        attempt = session.query(Attempt).one()
    assert abs(attempt.launched_at - now_ms()) < DAY_MS / 2


def test_two_machines_take_different_runs_without_waiting_for_each_other(queue: Path) -> None:
    SupervisorLoop(ScriptedEngine(slots=2))
    ids = [service.enqueue("count", {}, HOST).id for _ in range(2)]
    host = SupervisorLoop(ScriptedEngine(slots=2)).host
    with writing() as one, writing() as other:
        taken = [lifecycle.start_attempt(each, host, "scripted", 2) for each in (one, other)]
        assert [attempt.job_id for attempt in taken if attempt] == ids
    with writing() as third:
        assert lifecycle.start_attempt(third, host, "scripted", 2) is None


def test_of_two_requests_to_cancel_the_second_kills_wherever_it_comes_from(queue: Path) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    for _ in range(5):
        job = service.enqueue("count", {}, HOST)
        loop.turn()
        at_once(*[lambda job=job: service.cancel([job.id], HOST)] * 2)
        assert queries.job(job.id).desired == "kill"
        loop.turn()
        loop.turn()


def test_tags_that_two_people_add_at_once_are_both_there(queue: Path) -> None:
    job = service.enqueue("count", {}, HOST)
    names = [f"tag-{n}" for n in range(8)]
    at_once(*[lambda name=name: labels.edit([job.id], HOST, add=[name]) for name in names])
    assert sorted(queries.job(job.id).tags) == names


def test_guests_have_no_more_runs_than_they_may_wherever_they_ask(
    queue: Path, given: Given
) -> None:
    given(GUEST_RUNS="2")
    cost = SimpleNamespace(seconds=1.0, bytes=1, open_ended=False, letters=1, tokens=1)
    guests = [Actor(f"guest-{n}{n}-{n}") for n in range(6)]
    asked = [lambda guest=guest: service.enqueue("count", {}, guest, cost=cost) for guest in guests]
    answers = at_once(*asked)
    assert sum(isinstance(answer, Job) for answer in answers) == 2
    assert sum(isinstance(answer, ForbiddenError) for answer in answers) == 4


def test_rows_are_locked_in_one_order_so_that_nobody_waits_for_ever(queue: Path) -> None:
    ids = [service.enqueue("count", {}, HOST).id for _ in range(6)]
    for order in (ids, ids[::-1]):
        with writing() as session:
            assert [job.id for job in locked(session, Job, order)] == order
    results = at_once(
        *[lambda order=order: service.cancel(order, HOST) for order in (ids, ids[::-1]) * 3]
    )
    states = [result for result in results if isinstance(result, list)]
    assert {*states[0]} == {State.CANCELLED} and len(states) >= 1


def test_a_commit_is_on_the_disk_of_the_server_when_it_returns(queue: Path) -> None:
    with writing() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"  # the server's is off
    with reading() as session:
        assert session.scalar(text("SHOW transaction_read_only")) == "on"
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"


def test_a_view_that_two_people_save_at_once_is_saved(queue: Path) -> None:
    results = at_once(*[lambda n=n: labels.save_view("mine", f"q={n}", HOST) for n in range(6)])
    assert results == [None] * 6 and [view.name for view in queries.views()] == ["mine"]
