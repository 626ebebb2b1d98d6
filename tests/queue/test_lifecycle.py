"""What becomes of a job whose process has ended, the order of the queue, and logs read in parts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from backend.errors import ConflictError
from backend.queue import scheduling, service
from backend.queue.artifacts import TAIL_BYTES, log_file, read_log
from backend.queue.lifecycle import verdict
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Event, Job
from tests.queue.conftest import HOST


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
        (None, 77, "run", 0, State.QUEUED),  # a full disk costs no retry either
        (None, 79, "run", 0, State.QUEUED),  # nor does a database that was away
        (None, 78, "run", 1, State.QUEUED),
        (None, 78, "run", 0, State.LOST),
        (None, 80, "run", 0, State.FAILED),
        ("never started", None, "run", 0, State.QUEUED),
        ("never started", None, "stop", 0, State.CANCELLED),
    ],
)
def test_verdicts(
    outcome: str | None, code: int | None, desired: str, left: int, state: State
) -> None:
    assert verdict(outcome, code, desired, left).state == state


def test_a_run_waits_on_this_machine_for_the_restart_after_an_upgrade() -> None:
    judged = verdict(None, 80, "run", 0, here=True)
    assert judged.state == State.QUEUED and judged.delay_ms and not judged.spend_retry


def test_the_longest_waiting_rises(queue: object) -> None:
    old = service.enqueue("count", {}, HOST)
    new = service.enqueue("count", {}, HOST, priority=2)
    assert [j.id for j in scheduling.queued()] == [new.id, old.id]
    with writing() as session:
        session.get_one(Job, old.id).queued_at = now_ms() - 3 * scheduling.HOUR_MS
    assert [j.id for j in scheduling.queued()] == [old.id, new.id]


@given(
    waiting=st.lists(st.tuples(st.integers(-1000, 1000), st.floats(0, 99)), min_size=1, max_size=6),
    which=st.integers(0, 5),
    ahead=st.none() | st.integers(0, 5),
)
def test_a_run_is_moved_and_the_others_keep_their_order(
    queue: object, waiting: list[tuple[int, float]], which: int, ahead: int | None
) -> None:
    with writing() as session:
        for table in (Event, Job):
            session.execute(delete(table))
    ids = [service.enqueue("count", {}, HOST, priority=p).id for p, _ in waiting]
    with writing() as session:
        for job_id, (_, hours) in zip(ids, waiting, strict=True):
            session.get_one(Job, job_id).queued_at = now_ms() - round(hours * scheduling.HOUR_MS)
    before, chosen = [j.id for j in scheduling.queued()], ids[which % len(ids)]
    others = [i for i in before if i != chosen]
    after = ids[ahead % len(ids)] if ahead is not None else None
    if after == chosen:
        with pytest.raises(ConflictError, match="follow itself"):
            service.run_next(chosen, HOST, after)
        return
    service.run_next(chosen, HOST, after)
    others.insert(others.index(after) + 1 if after else 0, chosen)
    assert [j.id for j in scheduling.queued()] == others


def test_a_log_is_read_in_parts_and_no_character_is_cut(data_dir: Path) -> None:
    assert read_log("sds-0001", 1) == ("", 0, 0)
    path = log_file("sds-0001", 1)
    path.parent.mkdir(parents=True)
    whole = "perplexité ± 漢字\n".encode()
    path.write_bytes(whole[:-3])  # in the middle of the last sign
    first, _, cursor = read_log("sds-0001", 1, 0)
    path.write_bytes(whole)
    second, began, cursor = read_log("sds-0001", 1, cursor)
    assert first + second == whole.decode() and cursor == len(whole)
    assert began == len(first.encode())
    assert read_log("sds-0001", 1, cursor) == ("", cursor, cursor)


def test_a_long_log_begins_with_its_last_part(data_dir: Path) -> None:
    path = log_file("sds-0001", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * TAIL_BYTES + b"\xffend")
    text, began, cursor = read_log("sds-0001", 1)
    assert (
        text.endswith("\ufffdend")
        and len(text) == TAIL_BYTES
        and (began, cursor) == (4, TAIL_BYTES + 4)
    )
