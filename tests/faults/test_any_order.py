"""The loop over a scripted engine: whatever happens in whatever order, some things always hold."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from backend.errors import ConflictError
from backend.queue import service
from backend.queue.engines.base import PollResult
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import now_ms, reading, writing
from backend.store.states import LIVE, RESUMABLE, TERMINAL, State
from backend.store.tables import Attempt, Event, Job, Slot
from jobs.runtime.context import claim
from jobs.runtime.row_buffer import LeaseLostError
from tests.queue.conftest import HOST
from tests.queue.scripted_engine import ScriptedEngine


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
            change(deed, jobs[rest[0] % len(jobs)])
    elif deed == "claim late":
        claim_late(rest[0])
    elif live := live_attempts():
        attempt = live[rest[0] % len(live)]
        if deed == "claim":
            with writing() as session:
                session.get_one(Attempt, attempt.id).started_at = now_ms()
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


def change(deed: str, job: Job) -> None:
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
