"""A queue whose runs find the stand-in accelerator."""

from pathlib import Path

import pytest

from backend.queue.supervisor import SupervisorLoop
from tests.fork_engine import ForkEngine
from tests.jobs.conftest import counting_queue, queue
from tests.queue.conftest import wait

__all__ = ["counting_queue", "queue", "wait"]


@pytest.fixture
def engine() -> ForkEngine:
    engine = ForkEngine(1)
    engine.accelerated = True
    return engine


@pytest.fixture
def loop(queue: Path, engine: ForkEngine) -> SupervisorLoop:
    return SupervisorLoop(engine)
