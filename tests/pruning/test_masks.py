"""Masks have exact counts, the highest scores, and the lower index among ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.pruning.masks import (
    SMALL_GROUP,
    masked,
    overlap,
    top_per_group,
    top_per_row,
)

# Few distinct scores make ties common.
SCORES = st.integers(0, 4).map(np.float32)


def reference_mask(scores: list[float], keep: int) -> list[bool]:
    """Reference mask of the `keep` highest scores; among ties, the lower index."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [i in order[:keep] for i in range(len(scores))]


@st.composite
def rows_and_counts(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    scores = draw(arrays(np.float32, (rows, columns), elements=SCORES))
    return scores, draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))


@st.composite
def groups(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    group = draw(st.integers(2, SMALL_GROUP + 6))
    shape = draw(st.integers(1, 4)), group * draw(st.integers(1, 4))
    scores = draw(arrays(np.float32, shape, elements=SCORES))
    return scores, draw(st.integers(1, group - 1)), group


@given(rows_and_counts())
@settings(max_examples=200, deadline=None)
def test_each_row_keeps_its_count(case: tuple[np.ndarray, list[int]]) -> None:
    scores, counts = case
    mask = top_per_row(torch.from_numpy(scores), torch.tensor(counts))
    assert mask.tolist() == [
        reference_mask(r, k) for r, k in zip(scores.tolist(), counts, strict=True)
    ]


@given(groups())
@settings(max_examples=200, deadline=None)
def test_each_group_keeps_n(case: tuple[np.ndarray, int, int]) -> None:
    scores, keep, group = case
    mask = top_per_group(torch.from_numpy(scores), keep, group)
    expected = [reference_mask(part, keep) for part in scores.reshape(-1, group).tolist()]
    assert mask.reshape(-1, group).tolist() == expected


def test_masked_leaves_no_negative_zero() -> None:
    actual = masked(torch.tensor([-1.0, -2.0, 3.0]), torch.tensor([False, True, False]))
    assert actual.tolist() == [0, -2, 0]
    assert not torch.signbit(actual[[0, 2]]).any()


def test_overlap_is_intersection_over_union() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert overlap(a, b) == pytest.approx(1 / 3)
    assert overlap(a, a) == 1
    assert overlap(a & ~a, b & ~b) == 1
