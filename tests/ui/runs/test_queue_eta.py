"""When waiting runs may start."""

import pytest

from backend.queue.scheduling import QueueStatus
from backend.settings import Settings, settings
from backend.store.tables import Job
from tests.ui.lab import job
from ui.runs import queue_eta

COUNT = {"kind": "sds", "state": "queued"}


def standing(*left: float | None, waits: int = 3) -> QueueStatus:
    """So many seconds left of each running job, and three jobs that wait."""
    live = [job(i, state="running", eta_s=eta) for i, eta in enumerate(left, 1)]
    return QueueStatus(live, [job(10 + i, **COUNT) for i in range(waits)], {}, True)


@pytest.fixture
def minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job takes a minute."""
    monkeypatch.setattr(queue_eta, "expected_seconds", lambda _job, _finished: 60.0)


def test_on_one_slot_each_waits_for_all_before_it(current: Settings, minute: None) -> None:
    assert queue_eta.start_times(standing(30.0)) == {10: 30.0, 11: 90.0, 12: 150.0}
    assert queue_eta.start_times(standing()) == {10: 0.0, 11: 60.0, 12: 120.0}


def test_the_slot_that_is_free_first_is_taken(
    current: Settings, minute: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_SLOTS", "2")
    settings.cache_clear()
    assert queue_eta.start_times(standing(30.0, 100.0)) == {10: 30.0, 11: 90.0, 12: 100.0}
    assert queue_eta.start_times(standing(30.0, 100.0, 50.0)) == {10: 50.0, 11: 100.0, 12: 110.0}


def test_nothing_is_told_if_unknown(current: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue_eta.start_times(standing(None)) == {}
    monkeypatch.setattr(queue_eta, "expected_seconds", lambda _job, _finished: float("inf"))
    assert queue_eta.start_times(standing(30.0)) == {10: 30.0}


def test_a_job_takes_what_its_kind_expects_a_broken_one_nobody_knows(
    tables: Settings,
) -> None:

    def takes(**config: object) -> float:
        held = {"kind": "sds", "config": {"model": "toy", **config}}
        return queue_eta.expected_seconds(Job(**held), finished=0)

    assert 1 < takes(segments=4) < takes(segments=400) < float("inf")
    assert takes(pattern="no pattern") == takes(model="/no/such/folder") == float("inf")
