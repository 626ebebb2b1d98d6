"""The loop over a scripted engine: whatever happens in whatever order, some things always hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import delete, update

from backend.errors import ConflictError
from backend.queue import service
from backend.queue.engines.base import LaunchRequest, PollResult, Ref
from backend.queue.lifecycle import verdict
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import now_ms, reading, writing
from backend.store.states import LIVE, TERMINAL, State
from backend.store.tables import Attempt, Event, Job, Slot
from tests.queue.conftest import HOST


@dataclass
class ScriptedEngine:
    """Processes that live in a dict. The test says what becomes of them."""

    slots: int = 2
    name: str = "scripted"
    fate: dict[int, PollResult] = field(default_factory=dict)
    launched: list[int] = field(default_factory=list)

    def capacity(self) -> int:
        return self.slots

    def launch(self, launch: LaunchRequest) -> Ref:
        assert launch.attempt_id not in self.launched, "an attempt was started twice"
        self.launched.append(launch.attempt_id)
        self.fate[launch.attempt_id] = PollResult("running")
        return {"id": launch.attempt_id}

    def poll(self, ref: Ref) -> PollResult:
        return self.fate[ref["id"]]

    def stop(self, ref: Ref) -> None:
        self.end(ref["id"], "stopped", 75)

    def kill(self, ref: Ref) -> None:
        self.end(ref["id"], None, -9)

    def end(self, attempt: int, outcome: str | None, code: int) -> None:
        with writing() as session:
            live = update(Attempt).where(Attempt.id == attempt, Attempt.ended_at.is_(None))
            session.execute(live.values(outcome=outcome))
        self.fate[attempt] = PollResult("exited", code)


def live_attempts() -> list[Attempt]:
    with reading() as session:
        return session.query(Attempt).where(Attempt.ended_at.is_(None)).all()


def check_what_always_holds(engine: ScriptedEngine) -> None:
    with reading() as session:
        jobs = {j.id: j for j in session.query(Job)}
        attempts = session.query(Attempt).order_by(Attempt.id).all()
        held = [s.attempt_id for s in session.query(Slot) if s.attempt_id is not None]
    live = [a for a in attempts if a.ended_at is None]
    assert sorted(held) == sorted(a.id for a in live), "a slot is held exactly by each live attempt"
    assert len(live) <= engine.slots
    assert len({a.job_id for a in live}) == len(live), "a job never runs twice at the same time"
    for job in jobs.values():
        numbers = [a.n for a in attempts if a.job_id == job.id]
        assert numbers == list(range(1, job.attempts_made + 1))
        assert (job.state in LIVE) == any(a.job_id == job.id for a in live)
        assert (job.finished_at is not None) == (job.state in TERMINAL)


ACTIONS = st.one_of(
    st.tuples(st.just("submit")),
    st.tuples(st.just("turn")),
    st.tuples(st.sampled_from(["cancel", "resume"]), st.integers(0, 5)),
    st.tuples(st.just("claim"), st.integers(0, 3)),
    st.tuples(st.just("unknown"), st.integers(0, 3)),
    st.tuples(
        st.just("end"),
        st.integers(0, 3),
        st.sampled_from([("succeeded", 0), ("failed", 1), ("stopped", 75), (None, -9)]),
    ),
)


def act(action: tuple, engine: ScriptedEngine, loop: SupervisorLoop) -> None:
    """Carries out one random action where it makes sense."""
    deed, *rest = action
    jobs, live = queries.jobs(), live_attempts()
    if deed == "submit":
        service.enqueue("count", {}, HOST)
    elif deed == "turn":
        loop.turn()
    elif deed == "cancel" and jobs:
        with suppress(ConflictError):  # of a job that has ended
            service.cancel(jobs[rest[0] % len(jobs)].id, HOST)
    elif deed == "resume" and jobs:
        job = jobs[rest[0] % len(jobs)]
        if job.state in (State.FAILED, State.CANCELLED, State.LOST):
            service.resume(job.id, HOST)
    elif live and rest:
        attempt = live[rest[0] % len(live)]
        if deed == "claim":
            with writing() as session:
                session.get_one(Attempt, attempt.id).started_at = now_ms()
        elif deed == "unknown":
            engine.fate[attempt.id] = PollResult("unknown")
        elif deed == "end":
            engine.end(attempt.id, *rest[1])


@examples(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=st.lists(ACTIONS, max_size=40))
def test_any_order_of_events(queue: object, actions: list[tuple]) -> None:
    with writing() as session:
        for table in (Event, Slot, Attempt, Job):
            session.execute(delete(table))
    engine = ScriptedEngine()
    loop = SupervisorLoop(engine)
    for action in actions:
        act(action, engine, loop)
        if action[0] == "turn":
            check_what_always_holds(engine)
    loop.turn()
    check_what_always_holds(engine)


def test_an_unreachable_engine_changes_nothing(queue: object) -> None:
    engine = ScriptedEngine(slots=1)
    loop = SupervisorLoop(engine)
    job = service.enqueue("count", {}, HOST)
    loop.turn()
    engine.fate[engine.launched[0]] = PollResult("unknown")
    before = queries.job(job.id)
    loop.turn()
    assert queries.job(job.id).state == before.state and len(live_attempts()) == 1


@pytest.mark.parametrize(
    ("outcome", "code", "desired", "left", "state"),
    [
        ("succeeded", 0, "run", 2, State.SUCCEEDED),
        ("succeeded", 0, "stop", 2, State.SUCCEEDED),  # it finished first
        ("failed", 1, "run", 2, State.FAILED),
        ("stopped", 75, "stop", 2, State.CANCELLED),
        ("stopped", 75, "run", 0, State.QUEUED),  # told to go by someone else: costs no retry
        (None, -9, "run", 1, State.QUEUED),
        (None, -9, "run", 0, State.LOST),
        (None, -9, "kill", 2, State.CANCELLED),
        ("never started", None, "run", 0, State.QUEUED),
        ("never started", None, "stop", 0, State.CANCELLED),
    ],
)
def test_verdicts(
    outcome: str | None, code: int | None, desired: str, left: int, state: State
) -> None:
    assert verdict(outcome, code, desired, left).state == state


def test_the_longest_waiting_rises(queue: object) -> None:
    old = service.enqueue("count", {}, HOST)
    new = service.enqueue("count", {}, HOST, priority=2)
    assert [j.id for j in queries.queued()] == [new.id, old.id]
    with writing() as session:
        session.get_one(Job, old.id).queued_at = now_ms() - 3 * queries.HOUR_MS
    assert [j.id for j in queries.queued()] == [old.id, new.id]


@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waiting=st.lists(st.tuples(st.integers(-1000, 1000), st.floats(0, 99)), min_size=1, max_size=6),
    which=st.integers(0, 5),
)
def test_a_run_put_first_is_first_and_the_others_keep_their_order(
    queue: object, waiting: list[tuple[int, float]], which: int
) -> None:
    with writing() as session:
        for table in (Event, Job):
            session.execute(delete(table))
    ids = [service.enqueue("count", {}, HOST, priority=p).id for p, _ in waiting]
    with writing() as session:
        for job_id, (_, hours) in zip(ids, waiting, strict=True):
            session.get_one(Job, job_id).queued_at = now_ms() - round(hours * queries.HOUR_MS)
    before, chosen = [j.id for j in queries.queued()], ids[which % len(ids)]
    service.run_next(chosen, HOST)
    assert [j.id for j in queries.queued()] == [chosen, *(i for i in before if i != chosen)]
