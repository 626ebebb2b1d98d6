"""Runs of which only an engine knows; whatever happens in whatever order, some things hold."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from backend.errors import ConflictError
from backend.queue import scheduling, service, supervisor
from backend.queue.engines.base import PollResult
from backend.queue.engines.local import LocalEngine
from backend.queue.launcher import node_environment, submission_variables
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.session import database_ms, now_ms, reading, writing
from backend.store.states import LIVE, RESUMABLE, TERMINAL, Exit, State
from backend.store.tables import CLUSTER, Attempt, Event, Job, Slot, Supervisor
from jobs.runtime import context as runtime
from jobs.runtime import main as process
from jobs.runtime.context import claim
from jobs.runtime.row_buffer import LeaseLostError
from tests.conftest import Given
from tests.queue.conftest import HOST, change
from tests.queue.scripted_engine import ScriptedEngine


@pytest.fixture
def engine(queue: Path) -> ScriptedEngine:
    return ScriptedEngine(slots=1, name="scripted", host="scripted", remote=True)


def newest(job: Job) -> Attempt:
    return queries.attempts(job.id)[-1]


def silent_for(attempt: Attempt, ms: int) -> None:
    with writing() as session:
        moment = database_ms(session) - ms
    change(Attempt, attempt.id, beat_at=moment)


def test_a_supervisor_that_dies_before_the_launch_has_left_the_reference(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.enqueue("count", {}, HOST)
    loop = SupervisorLoop(engine)

    def power_cut(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "launch", power_cut)
        loop.turn()
    assert newest(job).engine_ref == {"id": newest(job).id}
    SupervisorLoop(engine).turn()  # asks, and starts the next attempt
    assert [a.outcome for a in queries.attempts(job.id)] == [supervisor.NEVER, None]
    assert queries.job(job.id).retries_left == service.RETRIES
    assert engine.launched == [newest(job).id]


def test_a_launch_whose_answer_was_lost_is_found_again(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.enqueue("count", {}, HOST)
    really = engine.launch

    def cut_off(launch: object) -> None:
        really(launch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "launch", cut_off)
        SupervisorLoop(engine).turn()
    SupervisorLoop(engine).turn()
    assert len(queries.attempts(job.id)) == 1 and newest(job).ended_at is None


@pytest.mark.parametrize(
    ("said", "state", "retries", "why"),
    [
        (PollResult("exited", 127, "python: not found"), State.QUEUED, 1, "python: not found"),
        (PollResult("exited", Exit.OTHER_VERSION), State.FAILED, 0, "another version"),
    ],
    ids=["never began", "another version"],
)
def test_what_an_engine_says_of_a_process_is_noted(
    engine: ScriptedEngine, said: PollResult, state: State, retries: int, why: str
) -> None:
    job = service.enqueue("count", {}, HOST)
    loop = SupervisorLoop(engine)
    loop.turn()
    engine.fate[newest(job).id], engine.slots = said, 0
    loop.turn()
    ended = queries.job(job.id)
    assert (ended.state, ended.retries_left) == (state, service.RETRIES - retries)
    told = [ended.error_text, *(event.text for event in queries.events(job.id))]
    assert any(why in text for text in told)
    assert engine.forgotten == [newest(job).id]
    with pytest.raises(LeaseLostError):
        claim(newest(job).id)


def test_slots_follow_the_machines_there_are(engine: ScriptedEngine) -> None:
    jobs = [service.enqueue("count", {}, HOST) for _ in range(4)]
    loop = SupervisorLoop(engine)
    for slots, running in ((1, 1), (3, 3), (0, 3), (2, 3), (4, 4)):
        engine.slots = slots
        loop.turn()
        states = [queries.job(job.id).state for job in jobs]
        assert states.count(State.STARTING) == running


def test_nothing_changes_while_the_cluster_does_not_answer(engine: ScriptedEngine) -> None:
    first, second = (service.enqueue("count", {}, HOST) for _ in range(2))
    loop = SupervisorLoop(engine)
    loop.turn()
    engine.slots, engine.known = 2, False
    engine.fate.clear()
    loop.turn()
    assert [queries.job(job.id).state for job in (first, second)] == ["starting", "queued"]
    assert scheduling.status().silent_since is None  # not yet
    with writing() as session:
        since = database_ms(session) - scheduling.SILENT_MS - 1000
        session.merge(Supervisor(host=CLUSTER, beat_at=since))
    loop._beat_at = -1e9
    loop.turn()
    assert scheduling.status().silent_since == since
    engine.known, engine.fate[newest(first).id] = True, PollResult("running")
    loop._beat_at = -1e9
    loop.turn()
    assert scheduling.status().silent_since is None
    assert queries.job(second.id).state == State.STARTING


def test_one_machine_has_no_cluster_to_wait_for(engine: ScriptedEngine) -> None:
    SupervisorLoop(engine)
    with writing() as session:
        session.merge(Supervisor(host=CLUSTER, beat_at=1))
    SupervisorLoop(ScriptedEngine()).turn()
    assert scheduling.status().supervisor_alive and scheduling.status().silent_since is None


@pytest.mark.parametrize("remote", [True, False])
def test_an_attempt_that_has_said_its_end_is_over_whatever_the_engine_says(
    queue: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    """A process of this machine is killed, and its slot is not free until it is gone."""
    engine = ScriptedEngine(slots=1, remote=remote)
    job = service.enqueue("count", {}, HOST)
    loop = SupervisorLoop(engine)
    loop.turn()
    change(Attempt, newest(job).id, outcome="succeeded")
    silent_for(newest(job), supervisor.EXIT_GRACE_MS - 5000)
    loop.turn()
    assert queries.job(job.id).state == State.STARTING
    exited = PollResult("running" if remote else "exited", None if remote else -signal.SIGKILL)
    monkeypatch.setattr(engine, "kill", lambda ref: engine.fate.update({ref["id"]: exited}))
    monkeypatch.setattr(engine, "end", lambda *_: None)
    silent_for(newest(job), supervisor.EXIT_GRACE_MS + 1000)
    loop.turn()
    if not remote:
        assert newest(job).ended_at is None
        loop.turn()
    assert queries.job(job.id).state == State.SUCCEEDED


def test_attempts_of_another_engine_are_left_alone_until_they_are_silent_for_long(
    engine: ScriptedEngine,
) -> None:
    job = service.enqueue("count", {}, HOST)
    SupervisorLoop(engine).turn()
    other = SupervisorLoop(ScriptedEngine(slots=0, name="another"))
    other.turn()
    assert newest(job).ended_at is None
    silent_for(newest(job), 1000 * int(settings().offline_s) + supervisor.SHUTDOWN_GRACE_MS + 1000)
    other.turn()
    assert newest(job).ended_at is not None and queries.job(job.id).state == State.QUEUED


def test_a_process_leaves_the_reference_of_its_engine(engine: ScriptedEngine) -> None:
    job = service.enqueue("count", {}, HOST)
    SupervisorLoop(engine).turn()
    claim(newest(job).id).finish("stopped")
    assert newest(job).engine_ref == {"id": newest(job).id}


def test_a_run_of_a_cluster_kills_itself_and_one_of_this_machine_is_killed(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(runtime.os, "killpg", lambda *given: killed.append(given))
    for name in ("scripted", LocalEngine.name):
        job = service.enqueue("count", {}, HOST)
        SupervisorLoop(engine).turn()
        change(Attempt, newest(job).id, engine=name)
        context = claim(newest(job).id)
        service.cancel([job.id], HOST)
        context._after_write()
        assert context.should_stop() and len(killed) == (name == LocalEngine.name)
        service.cancel([job.id], HOST)
        context._after_write()
        context.finish("stopped")
        change(Attempt, newest(job).id, engine=engine.name)
        engine.end(newest(job).id, "stopped", Exit.STOPPED)
        SupervisorLoop(engine).turn()
    assert killed == [(0, signal.SIGKILL)]


def test_a_process_elsewhere_writes_its_log(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Path("count-0001/a1/log.txt")
    monkeypatch.setattr(sys, "argv", ["main", "--attempt", "77", "--log", str(there)])
    kept = [os.dup(stream.fileno()) for stream in (sys.__stdout__, sys.__stderr__)]
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    try:
        assert process.main() == Exit.FENCED  # there is no such attempt
    finally:
        for copy, number in zip(kept, (1, 2), strict=True):
            os.dup2(copy, number)
            os.close(copy)
    assert "Another attempt has taken over this run" in (settings().artifacts / there).read_text()


def test_another_machine_is_told_no_path_and_no_secret(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    for name, value in {
        "HF_TOKEN": "hf_mine",
        "HF_HOME": "/here/hf",
        "HF_HUB_OFFLINE": "1",
        "HTTP_PROXY": "http://p",
    }.items():
        monkeypatch.setenv(name, value)
    given(MODEL_DIRS='["/here/models"]', TEXT_DIR="/here/texts", NATIVE="false")
    given(HOST_TOKEN="a-token-no-run-needs")
    told = node_environment(settings().for_jobs(), submission_variables())
    assert told["SLIMSCOPE_NATIVE"] == "false" and told["HF_HUB_OFFLINE"] == "1"
    secrets = ("hf_mine", "/here", "http://p", "a-token-no-run-needs", str(settings().root))
    assert not [text for text in told.values() if any(secret in text for secret in secrets)]
    assert "SLIMSCOPE_DATABASE_URL" not in told and "PATH" not in told


# any order ----------------------------------------------------------------------------------------


def live_attempts() -> list[Attempt]:
    with reading() as session:
        return session.query(Attempt).where(Attempt.ended_at.is_(None)).all()


def ended_jobs() -> dict[int, tuple[str, int | None]]:
    return {job.id: (job.state, job.finished_at) for job in queries.jobs(TERMINAL)}


def is_final(end: tuple[str, int | None]) -> bool:
    return end[0] == State.SUCCEEDED


def check_what_always_holds(engine: ScriptedEngine) -> None:
    with reading() as session:
        jobs = {j.id: j for j in session.query(Job)}
        attempts = session.query(Attempt).order_by(Attempt.id).all()
        held = [s.attempt_id for s in session.query(Slot) if s.attempt_id is not None]
    live = [a for a in attempts if a.ended_at is None]
    assert sorted(held) == sorted(a.id for a in live), "a slot is held exactly by each live attempt"
    assert len(live) <= MOST
    assert len({a.job_id for a in live}) == len(live), "a job never runs twice at the same time"
    for job in jobs.values():
        numbers = [a.n for a in attempts if a.job_id == job.id]
        assert numbers == list(range(1, job.attempts_made + 1))
        assert (job.state in LIVE) == any(a.job_id == job.id for a in live)
        assert (job.finished_at is not None) == (job.state in TERMINAL)


ENDS = [("succeeded", 0), ("failed", 1), ("stopped", 75), (None, 1), (None, 77), (None, 78)]
LOST = [(None, -9), (None, None)]
MOST = 2  # jobs at the same time
ACTIONS = st.one_of(
    st.tuples(st.just("room"), st.integers(0, MOST), st.booleans()),
    st.tuples(st.just("submit")),
    st.tuples(st.just("turn"), st.integers(0, 1)),  # of one of two supervisors
    st.tuples(st.sampled_from(["cancel", "resume"]), st.integers(0, 5)),
    st.tuples(st.just("claim"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["claim late", "unknown"]), st.integers(0, 3)),
    st.tuples(st.just("end"), st.integers(0, 3), st.sampled_from(ENDS + LOST)),
)


def act(action: tuple, engine: ScriptedEngine, loops: list[SupervisorLoop]) -> None:
    """Carries out one random action where it makes sense."""
    deed, *rest = action
    if deed == "submit":
        service.enqueue("count", {}, HOST)
    elif deed == "turn":
        turn(loops[rest[0]], engine)
    elif deed == "room":
        engine.slots, engine.known = rest
    elif deed in ("cancel", "resume"):
        if jobs := queries.jobs():
            ask(deed, jobs[rest[0] % len(jobs)])
    elif deed == "claim late":
        claim_late(rest[0])
    elif live := live_attempts():
        attempt = live[rest[0] % len(live)]
        if deed == "claim":
            change(Attempt, attempt.id, started_at=now_ms())
        elif deed == "unknown":
            engine.fate[attempt.id] = PollResult("unknown")
        else:
            engine.end(attempt.id, *rest[1])


def turn(loop: SupervisorLoop, engine: ScriptedEngine) -> None:
    """What the engine does not know of is neither ended nor started again."""
    unknown = {a.id for a in live_attempts() if engine.fate[a.id].state == "unknown"}
    loop.turn()
    assert unknown <= {a.id for a in live_attempts()}
    check_what_always_holds(engine)


def ask(deed: str, job: Job) -> None:
    """What a person asks for; a resumed job is the only one that leaves its end."""
    if deed == "resume" and job.state in RESUMABLE:
        service.resume([job.id], HOST)
    elif deed == "cancel":
        with suppress(ConflictError):  # of a job that has ended
            service.cancel([job.id], HOST)


def claim_late(which: int) -> None:
    """A process that comes late, or for the second time, gets nothing."""
    with reading() as session:
        gone = Attempt.ended_at.is_not(None) | Attempt.started_at.is_not(None)
        taken = session.query(Attempt).where(gone).all()
    if taken:
        with pytest.raises(LeaseLostError):
            claim(taken[which % len(taken)].id)


@given(actions=st.lists(ACTIONS, min_size=8, max_size=30), remote=st.booleans())
def test_any_order_of_events(queue: object, actions: list[tuple], remote: bool) -> None:
    with writing() as session:
        for table in (Event, Slot, Attempt, Job):
            session.execute(delete(table))
    engine = ScriptedEngine(MOST, remote=remote)
    loops = [SupervisorLoop(engine), SupervisorLoop(engine)]
    for action in [("submit",), ("submit",), ("turn", 1), *actions]:
        ended = ended_jobs()
        act(action, engine, loops)
        final = {i: end for i, end in ended.items() if action[0] != "resume" or is_final(end)}
        assert final.items() <= ended_jobs().items()
    turn(loops[0], engine)
