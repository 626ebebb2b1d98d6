"""What the host limits, what a slot owns, and waiting: for a retry, for a slot, for the disk."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import update

from backend.models.memory import is_out_of_memory
from backend.queue import lifecycle, service, supervisor
from backend.queue.engines import local
from backend.queue.engines.base import LaunchRequest
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Attempt, Job, Slot
from jobs.runtime.main import is_disk_full, limit_memory
from jobs.submit import submit
from tests.fork_server import FORKS
from tests.queue.conftest import HOST, Wait
from tests.queue.test_lifecycle import ScriptedEngine

DAY_MS = 86_400_000


def test_a_clock_that_was_set_back_holds_no_retry_up(queue: Path) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    job = service.enqueue("count", {}, HOST)
    with writing() as session:
        session.get_one(Job, job.id).not_before = now_ms() + lifecycle.RETRY_DELAYS_MS[0] - 5000
    loop.turn()
    assert queries.job(job.id).state == State.QUEUED
    with writing() as session:
        session.get_one(Job, job.id).not_before = now_ms() + DAY_MS
    loop.turn()
    assert queries.job(job.id).state == State.STARTING


def test_a_slot_another_supervisor_has_just_taken_is_left_alone(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SupervisorLoop(ScriptedEngine(slots=1))
    first, second = (service.enqueue("count", {}, HOST) for _ in range(2))
    with writing() as session:
        other = Attempt(job_id=second.id, n=1, token="", engine="scripted", launched_at=0)
        session.add(other)
        session.flush()
        taken = update(Slot).values(attempt_id=other.id)

    def too_late(*_: object) -> str:  # called between the look at the slot and its taking
        session.execute(taken)
        return "token"

    monkeypatch.setattr(lifecycle.secrets, "token_hex", too_late)
    with writing() as session:
        assert lifecycle.start_attempt(session, loop.host, "scripted", 1) is None
    assert queries.job(first.id).state == State.QUEUED and queries.attempts(first.id) == []


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "NO_SPACE_DELAY_MS", 0)
    job = submit("count", {"steps": 3, "full_at": 1, "pause": 0}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    ended = queries.job(job.id)
    assert ended.attempts_made == 2 and ended.retries_left == service.RETRIES
    assert any("disk is full" in event.text for event in queries.events(job.id))


def test_a_full_disk_is_known_by_what_is_behind_the_error() -> None:
    try:
        try:
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        except RuntimeError as error:
            raise ValueError("could not be saved") from error
    except ValueError as error:
        assert is_disk_full(error)
    assert not is_disk_full(ValueError("the shape of a disk"))


@pytest.mark.parametrize(
    ("named", "slots", "device", "expected"),
    [
        ("", 2, "auto", ["0", "1"]), ("", 4, "cuda", ["0", "1", "10", "0"]),
        ("2,5", 2, "auto", ["2", "5"]), ("7", 2, "auto", [None, None]),
        ("", 2, "cuda:1", [None, None]), ("", 1, "auto", [None]),
    ],
)  # fmt: skip
def test_each_slot_has_a_gpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, slots: int, device: str,
    expected: list[str | None],
) -> None:  # fmt: skip
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(local, "DEVICES", tmp_path)
    variables = {"CUDA_VISIBLE_DEVICES": named}
    shown = [
        local.visible_gpu(LaunchRequest(1, (), variables, "", "", slot, device), slots)
        for slot in range(slots)
    ]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in shown] == expected


def test_each_slot_has_cores_of_its_own(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 7}, raising=False)
    first, second = (LaunchRequest(1, (), {}, "", "", slot) for slot in range(2))
    assert [local.cores_of(each, 2) for each in (first, second)] == [[0, 1], [2, 5]]
    assert local.cores_of(first, 1) == [] and local.cores_of(first, 6) == []
    assert local.cores_of(replace(first, threads=3), 2) == []  # the job asks for more than its part
    monkeypatch.setenv("SLIMSCOPE_THREADS", "3")
    settings.cache_clear()
    assert local.cores_of(first, 2) == []


def test_a_run_that_takes_longer_than_the_host_allows_is_stopped(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, State.RUNNING)
    monkeypatch.setenv("SLIMSCOPE_JOB_HOURS", "1e-6")
    settings.cache_clear()
    assert wait(job.id, State.CANCELLED) == State.CANCELLED
    assert any(e.actor == supervisor.OVERTIME.name for e in queries.events(job.id))


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
