"""What programs that watch the dashboard are told, and what it costs the database."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy.exc import OperationalError

from tests.ui.visits import OTHER, TOKEN, Visit
from ui import health
from ui.health import READER, Snapshot


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.5)
    monkeypatch.setattr(health, "KNOWN_AWAY_S", 0.1)
    READER.forget()


@pytest.mark.parametrize("fault", ["it refuses", "it is silent"])
def test_pages_and_programs_are_told_that_the_database_is_away_and_when_it_is_back(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    client, back, asked, really = visit(), threading.Event(), list[int](), health._look
    assert client.get("/healthz").text == "ok\n"
    before = client.get("/slimscope/pulse").json()

    def away() -> Snapshot:
        asked.append(1)
        if not back.is_set():
            if fault == "it refuses":
                raise OperationalError("SELECT 1", None, Exception("connection refused"))
            back.wait()
        return really()

    monkeypatch.setattr(health, "_look", away)
    READER.forget()
    answers = [client.get("/healthz") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503} and len(asked) == 1
    assert answers[0].text.startswith("The database does not answer since 20")
    told = client.get("/slimscope/pulse").json()
    assert "does not answer since" in told["html"] and told["cursor"] == before["cursor"]
    assert "slimscope_database_up 0" in client.get("/metrics").text
    back.set()
    READER.forget()
    assert client.get("/healthz").status_code == 200 and not READER._is_away
    assert client.get("/slimscope/pulse").json() == before


def test_runs_that_wait_for_no_supervisor_are_told(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health.scheduling.QueueStatus, "stalled", True)
    assert "supervisor is not running" in visit().get("/healthz").text


def test_guests_get_no_more_metrics_than_pages_show(shared: Visit) -> None:
    guest = shared(OTHER).get("/metrics")
    host = shared(OTHER, authorization=f"Bearer {TOKEN}").get("/metrics")
    assert 'slimscope_runs{state="queued"} 1' in guest.text.splitlines()
    assert "# TYPE slimscope_supervisor_up gauge\nslimscope_supervisor_up 1\n" in guest.text
    names = [
        {line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")}
        for answer in (guest, host)
    ]
    of_the_machine = {"connections", "disk_free_bytes", "memory_bytes", "open_files"}
    assert names[1] - names[0] == {f"slimscope_{name}" for name in of_the_machine}
    assert guest.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
