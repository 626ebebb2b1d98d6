"""The supervisor dies, is there twice, comes late; everything stops at once; the clock is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text, update

from backend.queue import launcher, lifecycle, scheduling, service, supervisor
from backend.queue.engines import local
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store import session as session_module
from backend.store.migrate import current_revision, newest_revision, upgrade
from backend.store.session import engine_for, now_ms, reading, writing
from backend.store.states import State
from backend.store.tables import Attempt, Job, Slot
from jobs.runtime.context import claim
from jobs.runtime.row_buffer import LeaseLostError
from jobs.submit import submit
from tests.conftest import Given
from tests.fork_engine import ForkEngine, fork_module
from tests.fork_server import FORKS, begin_anew
from tests.queue.conftest import HOST, Wait, bare_job, change, curve, process_of, running
from tests.queue.scripted_engine import ScriptedEngine
from tests.waiting import until


def test_a_new_supervisor_adopts_the_running_process(wait: Wait) -> None:
    job = submit("count", {"steps": 30}, HOST)
    wait(job.id, when=running(job.id))
    before = process_of(job.id).pid
    successor = SupervisorLoop(LocalEngine(1))  # knows nothing but the database
    successor.turn()
    assert process_of(job.id).pid == before and queries.job(job.id).state == State.RUNNING
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert queries.job(job.id).attempts_made == 1


def test_dying_between_claim_and_start_loses_nothing(
    wait: Wait, loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1}, HOST)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.engine, "launch", power_cut)
        loop.turn()
    assert queries.job(job.id).state == State.STARTING
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert [a.outcome for a in queries.attempts(job.id)] == ["never started", "succeeded"]
    assert queries.job(job.id).retries_left == service.RETRIES
    with pytest.raises(LeaseLostError):  # a process that comes too late after all
        claim(queries.attempts(job.id)[0].id)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that is woken is forked, and so are its runs."""
    monkeypatch.setattr(launcher, "start_module", fork_module)


@pytest.mark.usefixtures("forked")
def test_of_two_supervisors_one_works_and_it_leaves_when_idle(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "1")
    jobs = [submit("count", {"steps": 2, "pause": 0}, HOST).id for _ in range(2)]
    launcher.SUPERVISOR.wake()
    second = fork_module("backend.queue.supervisor", queue / "second.log")
    until(lambda: all(queries.job(job).state == State.SUCCEEDED for job in jobs))
    assert [queries.job(job).attempts_made for job in jobs] == [1, 1]
    assert scheduling.status().supervisor_alive
    until(lambda: not launcher.SUPERVISOR.is_alive() and second.poll() is not None)
    assert second.poll() == 0


def test_two_dashboards_on_one_folder_make_one_queue(queue: Path, given: Given) -> None:
    given(DATA_DIR=str(queue / "fresh"))  # where nothing is yet
    both = [FORKS.Process(target=dashboard, args=(dict(os.environ), n)) for n in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert current_revision() == newest_revision()
    jobs = sorted(queries.jobs(), key=lambda job: job.id)
    assert [job.id for job in jobs] == [*range(1, 11)]
    for number in "01":
        named = [job.name for job in jobs if job.name.startswith(number)]
        assert named == [f"{number} {k}" for k in range(5)]
    assert len(scheduling.queued()) == 10


def dashboard(environment: dict[str, str], number: int) -> None:
    """As much of a dashboard as writes."""
    output = Path(environment["SLIMSCOPE_DATA_DIR"]).with_suffix(f".{number}")
    begin_anew(environment, output, output)
    service.wake_supervisor = lambda: None
    upgrade()
    for k in range(5):
        service.run_next(submit("count", {}, HOST, name=f"{number} {k}").id, HOST)


@pytest.mark.usefixtures("forked")
def test_a_power_cut_stops_everything_and_the_run_goes_on(
    queue: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = submit("count", {"steps": 8, "pause": 0.3}, HOST)
    launcher.SUPERVISOR.wake()
    until(running(job.id, 1))
    process = process_of(job.id)
    launcher.SUPERVISOR._started[queue][0].process.kill()
    until(lambda: not launcher.SUPERVISOR.is_alive())
    loop = SupervisorLoop(ForkEngine(1))
    loop.turn()
    assert process_of(job.id) == process and process.is_running()  # it outlives the supervisor
    process.kill()
    with monkeypatch.context() as patch:  # a pid of before the boot says nothing
        patch.setattr(local, "BOOT_ID", tmp_path / "boot")
        local.BOOT_ID.write_text("another boot")
        loop.turn()
    first, _ = queries.attempts(job.id)
    assert first.ended_at and queries.job(job.id).state == State.STARTING
    until(lambda: loop.turn() is False)
    assert queries.job(job.id).state == State.SUCCEEDED
    assert int(queries.attempts(job.id)[1].resumed_from.removeprefix("step-")) >= 1
    assert curve(job.id, "count") == [*range(8)]


@pytest.mark.sqlite("how it explains a plan")
def test_a_thousand_queued_jobs_are_in_order_and_found_by_an_index(queue: Path) -> None:
    now = now_ms()
    rows = [
        bare_job(
            owner=f"user-{n % 7}",
            priority=n * 31 % 11,
            queued_at=now - (n * 7919 % 1000) * scheduling.HOUR_MS // 10,
        )
        for n in range(1000)
    ]
    with writing() as opened:
        opened.add_all([*rows, *(bare_job(state=State.SUCCEEDED) for _ in range(1000))])
    status = scheduling.status()
    worth = [job.priority - job.queued_at / scheduling.HOUR_MS for job in status.queued]
    assert len(worth) == 1000 and worth == sorted(worth, reverse=True)
    assert [status.position(job.id) for job in status.queued] == [*range(1, 1001)]
    order = scheduling.launch_order(now_ms()).compile(
        engine_for(settings().url), compile_kwargs={"literal_binds": True}
    )
    with reading() as opened:
        plan = [row[3] for row in opened.execute(text(f"EXPLAIN QUERY PLAN {order}"))]
    assert [step for step in plan if step.startswith("SCAN")] == []
    assert sum("USING INDEX ix_jobs_order" in step for step in plan) == 2


def test_one_supervisor_is_started_however_often_it_is_asked_for(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def popen(*words: object, **_: object) -> subprocess.Popen[bytes]:
        begun.append(started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return begun[-1]

    started = subprocess.Popen
    monkeypatch.setattr(launcher.subprocess, "Popen", popen)
    (queue / ".slimscope").mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        launcher.SUPERVISOR.wake()
    assert len(begun) == 1
    begun[0].kill()
    begun[0].communicate()
    launcher.SUPERVISOR.wake()
    assert len(begun) == 2, "one that died is not waited for"
    begun[1].kill()
    begun[1].communicate()


def test_a_job_that_comes_as_the_supervisor_leaves_is_not_forgotten(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    jobs: list[int] = []

    def late() -> None:
        if not jobs:
            jobs.append(submit("count", {"steps": 1}, HOST).id)
            assert launcher.SUPERVISOR.is_alive()  # so nobody starts another one

    monkeypatch.setattr(supervisor, "shrink_log", late)
    monkeypatch.setattr(supervisor, "SHRINK_LOG_S", 10**9)
    monkeypatch.setattr(supervisor, "engine_of", lambda here: ForkEngine(here.slots))
    given(IDLE_EXIT="0.1")
    supervisor.main()
    assert queries.job(jobs[0]).state == State.SUCCEEDED


# clock --------------------------------------------------------------------------------------------


DAY_MS = 86_400_000
DELAY_MS = 30_000


def test_a_clock_that_was_set_back_holds_no_retry_up(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_MS", {0: DELAY_MS})
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = service.enqueue("count", {}, HOST)
    change(Job, job.id, not_before=now_ms() + DELAY_MS - 5000)
    loop.turn()
    assert queries.job(job.id).state == State.QUEUED
    change(Job, job.id, not_before=now_ms() + DAY_MS)
    loop.turn()
    assert queries.job(job.id).state == State.STARTING


@pytest.mark.parametrize("set_by", [DAY_MS, -DAY_MS])
def test_a_clock_that_is_set_ends_no_run_and_lengthens_none(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given, set_by: int
) -> None:
    seconds = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: seconds[0])
    given(JOB_HOURS="1")
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = service.enqueue("count", {}, HOST)
    loop.turn()
    with writing() as session:
        session.query(Attempt).update({Attempt.started_at: now_ms()})
    loop.turn()
    monkeypatch.setattr(session_module, "now_ms", lambda: now_ms() + set_by)
    seconds[0] = 3500.0
    loop.turn()
    assert (queries.job(job.id).state, queries.job(job.id).desired) == (State.RUNNING, "run")
    seconds[0] = 3700.0
    loop.turn()
    assert queries.job(job.id).desired == "stop"


@pytest.mark.sqlite("its clock is that of the machine")
@pytest.mark.parametrize("set_by", [DAY_MS, -DAY_MS])
def test_a_supervisor_is_known_to_be_there_when_the_clock_has_been_set(
    queue: Path, monkeypatch: pytest.MonkeyPatch, set_by: int
) -> None:
    seconds = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: seconds[0])
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    loop.turn()
    monkeypatch.setattr(session_module, "now_ms", lambda: now_ms() + set_by)
    assert not scheduling.status().supervisor_alive
    seconds[0] = supervisor.BEAT_S + 1
    loop.turn()
    assert scheduling.status().supervisor_alive


def test_a_slot_another_supervisor_has_just_taken_is_left_alone(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    first, second = (service.enqueue("count", {}, HOST) for _ in range(2))
    with writing() as opened:
        other = Attempt(job_id=second.id, n=1, token="", engine="scripted", launched_at=0)
        opened.add(other)
        opened.flush()
        taken = update(Slot).where(Slot.number == 0).values(attempt_id=other.id)

    def too_late(*_: object) -> str:  # called between the look at the slot and its taking
        opened.execute(taken)
        return "token"

    monkeypatch.setattr(lifecycle.secrets, "token_hex", too_late)
    with writing() as opened:
        assert lifecycle.start_attempt(opened, loop.host, "scripted", 1) is None
    assert queries.job(first.id).state == State.QUEUED and queries.attempts(first.id) == []
