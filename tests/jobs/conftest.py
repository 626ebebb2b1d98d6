"""The same queue as the queue's own tests use, but for real jobs."""

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
    """On a toy model threads wait for each other more than they compute. A job that was killed is
    started again at once."""
    monkeypatch.setattr("backend.queue.lifecycle.RETRY_DELAYS_MS", {})
    monkeypatch.setattr("backend.queue.service.QUICK_MAX_S", 0.0)  # one run after the other
    given(THREADS="1")
    settings()  # what a test then sets is for its children only
    return counting_queue


@pytest.fixture
def supervised(loop: SupervisorLoop) -> Iterator[SupervisorLoop]:
    """The loop, for commands that wait: it has the lock, so they wake no supervisor."""
    lock = SUPERVISOR.try_lock()
    assert lock is not None
    yield loop
    lock.release()
