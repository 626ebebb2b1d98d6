"""The order of the queue, what becomes of a job whose process has ended, and what a slot owns."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from backend.errors import ConflictError
from backend.models.memory import is_out_of_memory
from backend.queue import launcher, scheduling, service
from backend.queue.artifacts import TAIL_BYTES, log_file, read_log
from backend.queue.engines import local
from backend.queue.engines.base import LaunchRequest
from backend.queue.engines.local import LocalEngine
from backend.queue.lifecycle import end_attempt, verdict
from backend.queue.service import enqueue
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import Lane, State
from backend.store.tables import Attempt, Event, Job
from jobs.runtime.progress import limit_memory
from tests.conftest import Given
from tests.fork_server import FORKS
from tests.queue.conftest import HOST, change, process_of
from tests.queue.scripted_engine import ScriptedEngine
from ui.runs.queue_eta import start_times


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
    change(Job, old.id, queued_at=now_ms() - 3 * scheduling.HOUR_MS)
    assert [j.id for j in scheduling.queued()] == [old.id, new.id]


def test_a_person_with_nothing_running_is_first(queue: object) -> None:
    running = service.enqueue("count", {}, HOST)
    busy, idle = (service.enqueue("count", {}, HOST) for _ in range(2))
    change(Job, running.id, state=State.RUNNING, owner="mira")
    for job, owner in ((busy, "mira"), (idle, "noor")):
        change(Job, job.id, owner=owner, queued_at=running.queued_at)
    assert [j.id for j in scheduling.queued()] == [idle.id, busy.id]


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


# quick lane ---------------------------------------------------------------------------------------


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


def test_an_attempt_ends_once(queue: Path) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = added(LONG)
    loop.turn()
    ended(job)
    with writing() as session:
        end_attempt(session, session.query(Attempt).filter_by(job_id=job).one(), 1)
    assert queries.attempts(job)[0].exit_code == 0
    assert queries.job(job).state == State.SUCCEEDED


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


def test_it_stands_back_for_others(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = (sys.executable, "-c", "import signal; signal.pause()")
    monkeypatch.setattr(launcher, "RUN", idle)
    loop, long, quick = SupervisorLoop(LocalEngine(1)), added(LONG), added(QUICK)
    loop.turn()
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


# limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "slots", "device", "expected"),
    [
        ("", 2, "auto", ["0", "1"]),
        ("", 4, "cuda", ["0", "1", "10", "0"]),
        ("2,5", 2, "auto", ["2", "5"]),
        ("7", 2, "auto", [None, None]),
        ("", 2, "cuda:1", [None, None]),
        ("", 1, "auto", [None]),
    ],
)
def test_each_slot_has_a_gpu_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: str,
    slots: int,
    device: str,
    expected: list[str | None],
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(local, "DEVICE_FOLDER", tmp_path)
    variables = {"CUDA_VISIBLE_DEVICES": named}
    shown = [
        local.visible_gpu(LaunchRequest(1, (), variables, "", "", slot, device), slots)
        for slot in range(slots)
    ]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in shown] == expected


def test_each_slot_has_cores_of_its_own(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    first, second = (LaunchRequest(1, (), {}, "", "", slot) for slot in range(2))
    assert [local.cores_of(each, 2) for each in (first, second)] == [[0, 1], [2, 5]]
    assert local.cores_of(first, 1) == [] and local.cores_of(first, 6) == []
    assert local.cores_of(replace(first, threads=3), 2) == []  # the job asks for more than its part
    given(THREADS="3")
    assert local.cores_of(first, 2) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit covers other memory")
def test_beyond_its_memory_a_run_fails_and_the_machine_does_not() -> None:
    process = FORKS.Process(target=allocate_beyond_the_limit)
    process.start()
    process.join()
    assert process.exitcode == 0


def allocate_beyond_the_limit() -> None:
    limit_memory(2)
    try:
        torch.empty(10**9)  # 4 GB
    except RuntimeError as error:
        sys.exit(0 if is_out_of_memory(error) else f"{error}")
    sys.exit("It was given the memory.")
