"""The same queue as the queue's own tests use, but for real jobs, forked from a warm process."""

from pathlib import Path

import pytest

from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from tests.fork_engine import ForkEngine
from tests.queue.conftest import queue, wait

__all__ = ["loop", "queue", "wait"]


@pytest.fixture
def loop(queue: Path, request: pytest.FixtureRequest) -> SupervisorLoop:
    """The supervisor's loop; a test marked `fresh_process` gets jobs started as in production."""
    fresh = request.node.get_closest_marker("fresh_process")
    return SupervisorLoop(LocalEngine(1) if fresh else ForkEngine(1))
