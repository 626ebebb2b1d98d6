"""A full disk, and files that somebody removes."""

import errno
import os
import threading
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from backend.errors import ComputeError, is_disk_full
from backend.metric_key import MetricKey
from backend.queue import lifecycle, service
from backend.queue.artifacts import read_log, run_folder
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.states import Exit, State
from backend.store.tables import Job
from jobs.kind import kinds
from jobs.runtime import row_buffer
from jobs.runtime.main import execute
from jobs.submit import submit
from tests.conftest import Given
from tests.faults.conftest import ClaimHere, remove_files, until_dead
from tests.jobs.kinds import (
    test_amphista,
    test_benchmark_kind,
    test_dlqat,
    test_profile,
    test_sds,
)
from tests.queue.conftest import HOST, Wait, change, curve
from tests.waiting import until


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_and_odd_values_stop_neither_beats_nor_figures(
    claim_here: ClaimHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = claim_here()
    context.metric(MetricKey("loss"), float("nan"), 1)
    context.metric(MetricKey("loss"), 2.0, 2)
    with pytest.raises(ComputeError, match="is nan"):
        context.result("run", MetricKey("total"), float("nan"))

    monkeypatch.setattr(row_buffer, "WRITE_INTERVAL_S", 0.01)
    failed = threading.Event()

    def full_disk(*_: object, **__: object) -> None:
        failed.set()
        full()

    with monkeypatch.context() as patch:
        patch.setattr(context, "_write", full_disk)
        patch.setattr("builtins.print", full)
        context.start()
        assert failed.wait(20), "it did not write"
    service.cancel([context.run], HOST)
    until(context.should_stop)  # it beats again, and hears
    context.finish("stopped")
    assert frames.curves(context.job_id)["value"].tolist() == [2.0]


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "AGAIN_DELAY_MS", 0)
    job = submit("count", {"steps": 3, "full_at": 1, "pause": 0}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    ended = queries.job(job.id)
    assert ended.attempts_made == 2 and ended.retries_left == service.RETRIES
    assert any("disk is full" in event.text for event in queries.events(job.id))


def test_a_full_disk_is_known_by_what_is_behind_the_error() -> None:
    error = ValueError("could not be saved")
    error.__cause__ = RuntimeError("I/O error: No space left on device (os error 28)")
    assert is_disk_full(error) and not is_disk_full(ValueError("the shape of a disk"))


def test_a_run_that_cannot_be_started_on_a_full_disk_waits_for_room(
    loop: SupervisorLoop, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1, "pause": 0}, HOST)
    with monkeypatch.context() as patch:
        patch.setattr(loop.engine, "launch", full)
        loop.turn()
    waiting = queries.job(job.id)
    assert waiting.state == State.QUEUED and waiting.retries_left == service.RETRIES
    assert waiting.not_before > waiting.queued_at + lifecycle.AGAIN_DELAY_MS / 2
    monkeypatch.setattr(lifecycle, "AGAIN_DELAY_MS", 0)
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED


def full_database(*_: object) -> None:
    raise OperationalError("", {}, Exception("database or disk is full"))


CHECKPOINT = "backend.checkpoints._fsync"
FULL = {  # kind -> its config, and where it finds the disk full
    "sds": (test_sds.SMALL, CHECKPOINT, full),
    "dlqat": (test_dlqat.SMALL, CHECKPOINT, full),
    "amphista": (test_amphista.SMALL, CHECKPOINT, full),
    "benchmark": (test_benchmark_kind.SMALL, CHECKPOINT, full),
    "statistics": ({"model": "toy"}, CHECKPOINT, full),
    "evaluation": ({"model": "toy"}, "jobs.runtime.context.JobContext._write", full_database),
    "gguf": ({"model": "toy"}, CHECKPOINT, full),
    "profile": (test_profile.SMALL, CHECKPOINT, full),
    "count": ({}, CHECKPOINT, full),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_ends_no_run_of_any_kind(
    claim_here: ClaimHere, monkeypatch: pytest.MonkeyPatch, given: Given, kind: str
) -> None:
    config, where, fails = FULL[kind]
    context = claim_here(kind, **config)
    with monkeypatch.context() as patch:
        given(OFFLINE_S="0")
        patch.setattr(where, fails)
        if fails is full_database:
            with pytest.raises(OperationalError) as refused:
                execute(context)
            assert is_disk_full(refused.value)
        else:
            assert execute(context) == Exit.NO_SPACE
    assert queries.attempts(context.job_id)[0].outcome is None


def test_no_kind_is_left_out(queue: Path) -> None:
    assert FULL.keys() == kinds().keys()


# files that were removed --------------------------------------------------------------------------


def test_a_run_whose_files_were_removed_while_it_waited_begins_anew(
    loop: SupervisorLoop, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_MS", {1: 60_000})
    job = submit("count", {"steps": 3, "dies_at": 2, "pause": 0}, HOST)
    loop.turn()
    until_dead(job.id)
    assert wait(job.id, State.QUEUED) == State.QUEUED
    remove_files(job.id)
    change(Job, job.id, not_before=0)
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    said = "neither a log of attempt 1 nor a checkpoint. Starting from the beginning."
    assert said in read_log(job.run, 2)[0]
    assert curve(job.id, "attempt") == [2, 2, 2]


LITTLE = {
    "sds": {**test_sds.SMALL, "until": "first", "control": False},
    "dlqat": {**test_dlqat.SMALL, "windows": 2, "stages": "gptq", "sample_tokens": 0},
}


@pytest.mark.parametrize(("kind", "place"), [("sds", "first-0000"), ("dlqat", "gptq-0000")])
def test_a_method_whose_checkpoints_are_removed_under_it_begins_anew(
    wait: Wait, kind: str, place: str
) -> None:
    job = submit(kind, LITTLE[kind], HOST)
    wait(job.id, State.RUNNING)
    wait(job.id, State.FAILED, when=lambda: (run_folder(job.run) / "work" / place).exists())
    remove_files(job.id)
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    assert "its folder was removed; will resume" in [e.text for e in queries.events(job.id)]
    assert queries.job(job.id).attempts_made == 2 and (run_folder(job.run) / "model").exists()
