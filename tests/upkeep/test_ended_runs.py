"""Ended runs: their disk space, checkpoints that may be deleted, and the webhook, which is told
once and which nobody waits for."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backend.errors import ConflictError, ForbiddenError
from backend.printable import readable_bytes
from backend.queue import removal, upkeep
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder
from backend.queue.launcher import child_environment, job_environment
from backend.queue.removal import (
    DAY_MS,
    DELETED_CHECKPOINTS,
    disk_use,
    free_expired,
    free_space,
    has_checkpoints,
    orphaned_folders,
)
from backend.queue.service import enqueue, resume
from backend.settings import Settings, settings
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import State
from backend.store.tables import Job
from tests.conftest import Given
from tests.queue.conftest import HOST, change

FILES = {
    "a1/log.txt": 10,
    "a2/log.txt": 5,
    "model/weights": 2000,
    "work/step-0/done": 300,
    "text-a.jsonl": 7,
}


def ended(state: State = State.FAILED, days_ago: float = 0, name: str = "") -> Job:
    job = enqueue("count", {"steps": 1}, HOST, name=name)
    change(Job, job.id, state=state, finished_at=now_ms() - int(days_ago * DAY_MS))
    return job


def with_files(job: Job) -> Job:
    """A run with logs, a model, a checkpoint, a loose file and a link."""
    for name, size in FILES.items():
        file = run_folder(job.run) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    (run_folder(job.run) / "link").symlink_to("/usr")
    return job


def history(job: Job) -> list[tuple[str, str, str]]:
    return [(e.type, e.actor, e.text) for e in queries.events(job.id)][1:]


def test_what_takes_space(queue: Path) -> None:
    use = disk_use(with_files(ended()).run)
    assert use.pop("other files") == 7 + len("/usr")  # the link, not what it leads to
    assert use == {"logs": 15, "model": 2000, "checkpoints": 300}
    assert disk_use("count-9999") == {}
    sizes = (500, 2e6, 3.4e9, 5e12)
    assert [readable_bytes(int(n)) for n in sizes] == ["500 B", "2 MB", "3.4 GB", "5 TB"]
    (settings().artifacts / "sds-0099").mkdir()  # of no run
    assert [folder.name for folder in orphaned_folders()] == ["sds-0099"]


def test_an_ended_run_is_measured_once(queue: Path) -> None:
    live = enqueue("count", {"steps": 1}, HOST)
    failed, done = with_files(ended()), with_files(ended(State.SUCCEEDED))
    upkeep.measure_ended()
    upkeep.measure_ended()
    sizes = {job.id: job.disk_bytes for job in queries.jobs()}
    checkpoints = 300  # which the supervisor deletes where the run succeeded
    assert sizes == {live.id: None, failed.id: 2326, done.id: 2326 - checkpoints}
    assert [each[0] for each in history(failed)] == ["measured"]
    assert resume([failed.id], HOST)[0].disk_bytes is None
    assert [job.id for job in queries.largest(5)] == [done.id]


def test_a_host_frees_the_checkpoints_of_a_run_that_is_neither_queued_nor_live(
    queue: Path,
) -> None:
    job = with_files(ended())
    with pytest.raises(ForbiddenError):
        free_space(job.run, Actor("guest-abc-1", "guest"))
    change(Job, job.id, state=State.QUEUED)
    with pytest.raises(ConflictError, match="It is queued"):
        free_space(job.run, HOST)
    change(Job, job.id, state=State.FAILED)
    assert has_checkpoints(job.run) and free_space(job.run, HOST) == 300
    assert disk_use(job.run).keys() == {"logs", "model", "other files"}
    assert queries.job(job.id).disk_bytes == 2026
    assert not (run_folder(job.run) / DELETED_CHECKPOINTS).exists()
    what = "300 B freed; resuming starts from the beginning"
    assert history(job) == [("checkpoints deleted", "mira", what)]
    with pytest.raises(ConflictError, match="no checkpoints"):
        free_space(job.run, HOST)


def test_of_two_at_one_moment_one_comes_first(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints are set aside in the transaction that has read the state."""
    job, delete = with_files(ended()), removal.delete_folder
    resuming = threading.Thread(target=resume, args=([job.run], HOST))

    def resumed_meanwhile(folder: Path) -> None:
        if not resuming.ident:  # before the checkpoints are set aside
            resuming.start()
            resuming.join(0.2)
            assert resuming.is_alive()  # it waits for the transaction
        delete(folder)

    monkeypatch.setattr(removal, "delete_folder", resumed_meanwhile)
    free_space(job.run, HOST)
    resuming.join()
    assert [each[0] for each in history(job)] == ["checkpoints deleted", "resumed"]


def test_old_checkpoints_alone_expire(queue: Path, given: Given) -> None:
    given(KEEP_CHECKPOINTS_DAYS="2")
    old = [with_files(ended(state, 3)) for state in (State.FAILED, State.CANCELLED, State.LOST)]
    kept = [(State.FAILED, 1), (State.SUCCEEDED, 3), (State.QUEUED, 3)]
    others = [with_files(ended(state, days)) for state, days in kept]
    leftover = run_folder(others[0].run) / DELETED_CHECKPOINTS / "step-0"
    leftover.mkdir(parents=True)  # of a process that was killed
    free_expired()
    assert not any(has_checkpoints(job.run) for job in old) and not leftover.exists()
    assert all(has_checkpoints(job.run) for job in others)
    assert all((run_folder(job.run) / "model" / "weights").exists() for job in old)
    what = "300 B freed after 2 days; resuming starts from the beginning"
    assert history(old[0]) == [("checkpoints deleted", "supervisor", what)]


# the webhook --------------------------------------------------------------------------------------


@pytest.fixture
def told(queue: Path, given: Given) -> Iterator[list[Any]]:
    """What was posted to the webhook."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(posted) == 2 else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        given(WEBHOOK=f"http://127.0.0.1:{server.server_port}/hook")
        yield posted
        server.shutdown()


def test_a_run_is_told_once_and_names_hold_no_commands(
    told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # as in the product; httpx would write the address below it
    done = ended(State.SUCCEEDED, name="<!channel> & <@U1|all>")
    failed = ended()  # told with the status 500, which is not tried again
    ended(State.SUCCEEDED, days_ago=0.1)  # as imported ones are
    enqueue("count", {"steps": 1}, HOST)
    for _ in range(2):
        upkeep.measure_ended()
    told.sort(key=lambda each: each["run"])
    states = [(done.run, "succeeded"), (failed.run, "failed")]
    assert [(each["run"], each["state"]) for each in told] == states
    assert "/hook" not in caplog.text
    assert told[0]["text"] == f"{done.run} (&lt;!channel&gt; &amp; &lt;@U1|all&gt;): succeeded"
    assert set(told[0]) == {"text", "run", "kind", "name", "state", "error"}


def test_one_that_does_not_answer_costs_nothing_and_runs_do_not_get_its_address(
    queue: Path, given: Given, caplog: pytest.LogCaptureFixture
) -> None:
    given(WEBHOOK="http://127.0.0.1:9/T0KEN")
    job = ended(State.SUCCEEDED)
    upkeep.measure_ended()
    assert queries.job(job.id).disk_bytes == 0
    assert "was not notified" in caplog.text and "T0KEN" not in caplog.text
    assert "SLIMSCOPE_WEBHOOK" in child_environment()  # of the supervisor
    assert "SLIMSCOPE_WEBHOOK" not in job_environment({}, {})[0]


@pytest.mark.parametrize("address", ["file:///etc/passwd", "example.org", "ftp://example.org"])
def test_an_address_of_no_web_server_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="must begin with"):
        Settings(webhook=address)
