"""Fixtures of the queue tests, for real jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.queue.launcher import SUPERVISOR
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from tests.conftest import Given
from tests.queue.conftest import loop, wait
from tests.queue.conftest import queue as counting_queue

__all__ = ["counting_queue", "loop", "queue", "wait"]


@pytest.fixture
def queue(counting_queue: Path, given: Given, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue whose jobs use one thread, which is fastest for a toy model, and restart at once
    after a kill."""
    monkeypatch.setattr("backend.queue.lifecycle.RETRY_DELAYS_MS", {})
    monkeypatch.setattr("backend.queue.service.QUICK_MAX_S", 0.0)  # one run after the other
    given(THREADS="1")
    settings()  # what a test then sets is for its children only
    return counting_queue


@pytest.fixture
def supervised(loop: SupervisorLoop) -> Iterator[SupervisorLoop]:
    """A running supervisor loop with the lock, so that waiting commands start no supervisor."""
    lock = SUPERVISOR.try_lock()
    assert lock is not None
    yield loop
    lock.release()
