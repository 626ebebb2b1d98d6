"""Paired comparisons: an interval that covers, and pairs that are none."""

from __future__ import annotations

import numpy as np
import pytest

from backend.statistics.paired import paired_ratio


def test_a_difference_on_every_window_is_told_apart_though_windows_differ_much() -> None:
    random = np.random.default_rng(0)
    dense = random.normal(3.0, 0.5, 16)
    worse = dense + random.normal(0.02, 0.005, 16)
    found = paired_ratio(worse, dense)
    assert found is not None and found.told_apart and found.windows == 16
    assert found.value == pytest.approx(np.exp((worse - dense).mean()))
    assert 1 < found.low < found.value < found.high < 1.04


def test_noise_is_not_told_apart_and_the_interval_covers() -> None:
    random = np.random.default_rng(1)
    apart = covered = 0
    for _ in range(200):
        one, other = random.normal(3.0, 0.5, 24), random.normal(0, 0.01, 24)
        found = paired_ratio(one + other, one)
        assert found is not None
        apart += found.told_apart
        covered += found.low <= 1 <= found.high
    assert apart < 30 and covered > 170  # 5 % expected, somewhat more of so few windows


def test_what_is_no_pair_has_no_ratio() -> None:
    assert paired_ratio([1.0] * 6, [1.0] * 7) is None
    assert paired_ratio([1.0] * 4, [1.0] * 4) is None
    same = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert same is not None and (same.low, same.value, same.high) == (1, 1, 1)
    assert not same.told_apart
