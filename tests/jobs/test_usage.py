"""Tests of the resource usage of a process."""

from itertools import pairwise
from types import SimpleNamespace

import psutil
import pytest

from jobs.metrics import MEMORY, PROCESSOR
from jobs.runtime import progress
from jobs.runtime.progress import MB, UsageSampler


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time in seconds, which tests advance."""
    time = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: time.now))
    monkeypatch.setattr(progress, "now_ms", lambda: int(1000 * time.now))
    return time


def test_points_become_rare_in_a_long_run(clock: SimpleNamespace) -> None:
    points: list[tuple[str, float, int]] = []
    sampler = UsageSampler(0, lambda *point: points.append(point))
    for second in range(1, 3600):
        clock.now = second
        sampler.sample()
    steps = [step for name, _, step in points if name == MEMORY]
    assert steps[:50] == [*range(1, 51)] and steps == sorted({*steps}) and steps[-1] > 3500
    assert max(later - step for step, later in pairwise(steps)) <= 37
    assert 200 < len(steps) < 600 and len(points) == 2 * len(steps)


def test_memory_and_processor_are_those_of_this_process(clock: SimpleNamespace) -> None:
    points: dict[str, float] = {}
    sampler = UsageSampler(-60_000, lambda name, value, step: points.update({name: value}))
    clock.now = 2.0
    sampler.sample()
    used_mb = psutil.Process().memory_info().rss / MB
    assert points[MEMORY] == pytest.approx(used_mb, rel=0.5) and points[PROCESSOR] >= 0
    assert MEMORY.axis == PROCESSOR.axis == "seconds"
