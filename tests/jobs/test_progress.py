"""Tests of the remaining time of a job, from its progress; of the resources of its process, and of
its position among the blocks."""

from itertools import pairwise
from unittest.mock import ANY

import psutil
import pytest
from pytest import approx

from backend.reporter import REPLAY
from jobs.metrics import MEMORY, PROCESSOR
from jobs.runtime import progress as module
from jobs.runtime.progress import MB, Progress, UsageSampler


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which tests advance."""
    now = [0.0]
    monkeypatch.setattr(module, "MAX_SMOOTHING_S", 1e-9)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "now_ms", lambda: int(1000 * now[0]))
    return now


def eta(progress: Progress) -> float | None:
    seconds = progress.columns()["eta_s"]
    return None if seconds is None else float(seconds)


CASES = {  # estimate; then time, share done, activity, end of its phase, and seconds that remain
    "nobody knows before something is done": (
        None,
        [(0, 0.0, "One", 1.0, None), (100, 0.0, "One", 1.0, None)],
    ),
    "the rest of a phase takes its own pace": (
        None,
        [
            (0, 0.0, "Fast", 0.5, None),
            (50, 0.5, "Fast", 0.5, approx(50)),
            (50, 0.5, "Slow", 0.75, ANY),
            # a tenth in 50 s, where the first half took as long
            (100, 0.6, "Slow", 0.75, approx(0.15 * 500 + 0.25 * 100 / 0.6)),
        ],
    ),
    "what is only looked up again has no pace": (
        None,
        [
            (0, 0.0, "One", 1.0, None),
            (1, 0.5, REPLAY, 1.0, None),
            (41, 0.6, "One", 1.0, approx(160)),
        ],
    ),
    "the estimate counts until the pace is known": (
        180.0,
        [
            (0, 0.0, "One", 1.0, ANY),
            (3, 1e-5, "One", 1.0, approx(185, abs=5)),  # by its pace alone 83 hours
            (200, 0.5, "One", 1.0, approx(190, abs=10)),  # slower than estimated, and known well
        ],
    ),
}


@pytest.mark.parametrize(("estimate", "points"), CASES.values(), ids=CASES)
def test_the_remaining_time_follows_the_pace(
    clock: list[float], estimate: float | None, points: list[tuple]
) -> None:
    progress = Progress(estimate)
    assert eta(progress) == estimate
    for now, share, activity, end, expected in points:
        clock[0] = now
        progress.report(share, 1.0, activity, phase_end=end)
        assert eta(progress) == expected


@pytest.mark.parametrize(("seconds", "least", "most"), [(1e-9, 100, 1000), (30.0, 0, 10)])
def test_what_is_told_moves_slowly_toward_what_is_reckoned(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, seconds: float, least: int, most: int
) -> None:
    monkeypatch.setattr(module, "MAX_SMOOTHING_S", seconds)
    progress, estimates = Progress(), list[float]()
    progress.report(0.0, 1.0, "Fast", phase_end=0.5)
    for second in range(10, 200):  # after 50 the pace is a sixth
        clock[0] = second
        share = 0.01 * second if second < 50 else 0.5 + (second - 50) / 600
        progress.report(share, 1.0, "Work", phase_end=0.5 if second < 50 else 1.0)
        estimates.append(float(eta(progress) or 0))
    assert least <= max(after - before for before, after in pairwise(estimates)) < most
    assert estimates[0] == approx(90) and estimates[-1] == approx(150, abs=10)


def test_after_a_resume_the_end_is_reckoned_anew_and_near_it_counts_what_is_reckoned(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SMOOTHING_S", 30.0)
    progress = Progress(7200.0)
    assert eta(progress) == approx(7200)
    clock[0] = 4
    progress.report(0.8, 1.0, REPLAY, phase_end=1.0)
    assert eta(progress) == approx(1440)
    progress = Progress(600.0)
    progress.report(0.0, 1.0, "One", phase_end=1.0)
    for second in range(1, 60):
        clock[0] = 4 + second
        progress.report(second / 60, 1.0, "One", phase_end=1.0)
        seconds_left = float(eta(progress) or 0)
    assert seconds_left < 10


def test_the_log_is_told_what_has_moved() -> None:
    progress = Progress()
    assert progress.log_line() == ""
    progress.report(0.24, 1.0, "Re-dense, block 3 of 30", phase_end=1.0)
    assert progress.log_line() == "24 %: Re-dense, block 3 of 30." and progress.log_line() == ""


def test_points_become_rare_in_a_long_run(clock: list[float]) -> None:
    points: list[tuple[str, float, int]] = []
    sampler = UsageSampler(0, lambda *point: points.append(point))
    for second in range(1, 3600):
        clock[0] = second
        sampler.sample()
    steps = [step for name, _, step in points if name == MEMORY]
    assert steps[:50] == [*range(1, 51)] and steps == sorted({*steps}) and steps[-1] > 3500
    assert max(later - step for step, later in pairwise(steps)) <= 37
    assert 200 < len(steps) < 600 and len(points) == 2 * len(steps)


def test_memory_and_processor_are_those_of_this_process(clock: list[float]) -> None:
    points: dict[str, float] = {}
    sampler = UsageSampler(-60_000, lambda name, value, step: points.update({name: value}))
    clock[0] = 2.0
    sampler.sample()
    used_mb = psutil.Process().memory_info().rss / MB
    assert points[MEMORY] == approx(used_mb, rel=0.5) and points[PROCESSOR] >= 0
    assert MEMORY.axis == PROCESSOR.axis == "seconds"
