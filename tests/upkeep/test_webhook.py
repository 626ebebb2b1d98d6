"""The webhook is told of a run's end once, and nobody waits for one that does not answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backend.queue import upkeep
from backend.queue.launcher import child_environment, job_environment
from backend.queue.service import enqueue
from backend.settings import Settings, settings
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Job
from tests.queue.conftest import HOST

HOUR_MS = 3_600_000


@pytest.fixture
def told(queue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was posted to the webhook."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(posted) == 2 else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SLIMSCOPE_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hook")
        settings.cache_clear()
        yield posted
        server.shutdown()


def ended(state: State, name: str = "", ago_ms: int = 0) -> Job:
    job = enqueue("count", {"steps": 1}, HOST, name=name)
    with writing() as session:
        row = session.get_one(Job, job.id)
        row.state, row.finished_at = state, now_ms() - ago_ms
    return job


def test_a_run_is_told_once_and_names_hold_no_commands(
    told: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # as in the product; httpx would write the address below it
    done = ended(State.SUCCEEDED, "<!channel> & <@U1|all>")
    failed = ended(State.FAILED)  # told with the status 500, which is not tried again
    ended(State.SUCCEEDED, ago_ms=2 * HOUR_MS)  # as imported ones are
    enqueue("count", {"steps": 1}, HOST)
    for _ in range(2):
        upkeep.measure_ended()
    told.sort(key=lambda each: each["run"])
    assert [(each["run"], each["state"]) for each in told] == [
        (done.run, "succeeded"),
        (failed.run, "failed"),
    ]
    assert "/hook" not in caplog.text
    assert told[0]["text"] == f"{done.run} (&lt;!channel&gt; &amp; &lt;@U1|all&gt;): succeeded"
    assert set(told[0]) == {"text", "run", "kind", "name", "state", "error"}


def test_one_that_does_not_answer_costs_nothing(
    queue: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "http://127.0.0.1:9/T0KEN"
    monkeypatch.setenv("SLIMSCOPE_WEBHOOK", secret)
    settings.cache_clear()
    job = ended(State.SUCCEEDED)
    upkeep.measure_ended()
    assert queries.job(job.id).disk_bytes == 0
    assert "was not notified" in caplog.text and "T0KEN" not in caplog.text


def test_runs_do_not_get_the_address(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSCOPE_WEBHOOK", "https://example.org/T0KEN")
    assert "SLIMSCOPE_WEBHOOK" in child_environment()  # of the supervisor
    assert "SLIMSCOPE_WEBHOOK" not in job_environment({}, {})[0]
    for address in ("file:///etc/passwd", "example.org", "ftp://example.org"):
        with pytest.raises(ValidationError, match="must begin with"):
            Settings(webhook=address)
