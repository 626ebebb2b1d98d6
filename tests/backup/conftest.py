"""Fixtures for backups: the queue of real jobs, and a data folder that can be switched."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Given
from tests.jobs.conftest import counting_queue, loop, queue, wait

__all__ = ["counting_queue", "loop", "move_to", "queue", "wait"]


@pytest.fixture
def move_to(queue: Path, given: Given) -> Iterator[Callable[[Path], None]]:
    """Switch to another data folder until the test ends."""
    yield lambda folder: given(DATA_DIR=str(folder))
    given(DATA_DIR=str(queue))
