"""What programs that watch the dashboard are told, and what it costs the database."""

import threading

import pytest
from sqlalchemy.exc import OperationalError

from tests.ui.visits import OTHER, TOKEN, Visit
from ui import health
from ui.health import READER, Snapshot


@pytest.mark.parametrize("is_silent", [True, False])
def test_pages_and_programs_are_told_that_the_database_is_away_and_when_it_is_back(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    client, back, asked, really = visit(), threading.Event(), list[int](), health._read_snapshot

    def away() -> Snapshot:
        asked.append(1)
        if not (back.wait() if is_silent else back.is_set()):
            raise OperationalError("SELECT 1", None, Exception("connection refused"))
        return really()

    assert client.get("/healthz").text == "ok\n"
    before = client.get("/slimscope/pulse").json()
    for name, value in {
        "_read_snapshot": away,
        "TIMEOUT_S": 0.3,
        "TIMEOUT_WHILE_AWAY_S": 0.1,
    }.items():
        monkeypatch.setattr(health, name, value)
    READER._pending = None
    answers = [client.get("/healthz") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503} and len(asked) == 1
    assert answers[0].text.startswith("The database has not answered since 20")
    told = client.get("/slimscope/pulse").json()
    assert "has not answered since" in told.pop("html") and told.items() <= before.items()
    assert "slimscope_database_up 0" in client.get("/metrics").text
    back.set()
    READER._pending = None
    monkeypatch.setattr(health, "TIMEOUT_WHILE_AWAY_S", 5.0)
    assert client.get("/slimscope/pulse").json() == before
    monkeypatch.setattr(health.scheduling.QueueStatus, "stalled", True)
    assert "supervisor is not running" in client.get("/healthz").text


def test_guests_get_no_more_metrics_than_pages_show(shared: Visit) -> None:
    guest = shared(OTHER).get("/metrics")
    host = shared(OTHER, authorization=f"Bearer {TOKEN}").get("/metrics")
    assert "slimscope_runs_queued 1" in guest.text.splitlines()
    assert "# TYPE slimscope_supervisor_up gauge\nslimscope_supervisor_up 1\n" in guest.text
    of_guest, of_host = (
        {line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")}
        for answer in (guest, host)
    )
    of_all = (
        "connections",
        "disk_free_bytes",
        "answers",
        "requests_total",
        "request_seconds_total",
    )
    assert of_host - of_guest == {f"slimscope_{name}" for name in of_all}
    assert 'slimscope_runs{state="queued"} 1' in guest.text.splitlines()
    assert guest.text.count("# TYPE slimscope_runs gauge") == 1
