"""When waiting runs may start."""

import pytest

from backend.queue.scheduling import QueueStatus
from backend.queue.service import ESTIMATED_SECONDS
from backend.settings import Settings, settings
from tests.ui.lab import job
from ui.runs import queue_eta

COUNT = {"kind": "sds", "state": "queued"}


def standing(*left: float | None, waits: int = 3, seconds: float | None = 60.0) -> QueueStatus:
    """So many seconds left of each running job, and three jobs that wait, of a minute each."""
    live = [job(i, state="running", eta_s=eta) for i, eta in enumerate(left, 1)]
    lasts = {} if seconds is None else {ESTIMATED_SECONDS: seconds}
    queued = [job(10 + i, **COUNT, environment=lasts) for i in range(waits)]
    return QueueStatus(live, queued, {}, True)


def test_on_one_slot_each_waits_for_all_before_it(current: Settings) -> None:
    assert queue_eta.start_times(standing(30.0)) == {10: 30.0, 11: 90.0, 12: 150.0}
    assert queue_eta.start_times(standing()) == {10: 0.0, 11: 60.0, 12: 120.0}


def test_the_slot_that_is_free_first_is_taken(
    current: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_SLOTS", "2")
    settings.cache_clear()
    assert queue_eta.start_times(standing(30.0, 100.0)) == {10: 30.0, 11: 90.0, 12: 100.0}
    assert queue_eta.start_times(standing(30.0, 100.0, 50.0)) == {10: 50.0, 11: 100.0, 12: 110.0}


def test_nothing_is_told_if_unknown(current: Settings) -> None:
    assert queue_eta.start_times(standing(None)) == {}
    assert queue_eta.start_times(standing(30.0, seconds=None)) == {10: 30.0}
