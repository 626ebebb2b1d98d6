"""Sizes against the bytes that are really written, and the formats against what they read back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.evaluation.size import (
    bitmask_bytes,
    compact_bytes,
    decode,
    encode,
    fullest,
    sizes,
)
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern


def sparse(rows: int, columns: int, share: float, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=dice)
    return W * (torch.rand(rows, columns, generator=dice) >= share)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 17), st.integers(1, 19), st.floats(0, 1), st.integers(0, 99),
    st.sampled_from([torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_what_was_written_reads_back_and_has_the_size_that_was_told(
    rows: int, columns: int, share: float, seed: int, dtype: torch.dtype
) -> None:
    W = sparse(rows, columns, share, seed)
    packed = encode(W, dtype)
    halves = W.to(dtype)
    assert torch.equal(decode(packed), halves)
    assert packed.size == bitmask_bytes(W.numel(), int((halves != 0).sum()))


def test_extreme_values_and_minus_zero() -> None:
    W = torch.tensor([[-0.0, 0.0, 65504.0, -65504.0], [1e-30, 6e-8, float("inf"), -1.0]])
    back = decode(encode(W, torch.float16))
    assert torch.equal(back, W.to(torch.float16))  # equal: +0 and -0 are
    assert not torch.signbit(back[0, 0])


@pytest.mark.parametrize(
    ("keep", "group", "bits"), [(2, 4, 2), (4, 8, 3), (1, 2, 1), (1, 4, 2), (3, 5, 3)]
)
def test_a_compact_group_has_its_values_and_their_places(keep: int, group: int, bits: int) -> None:
    groups = 40
    found = compact_bytes(groups * group, keep, group)
    assert found == groups * keep * 2 + groups * keep * bits / 8
    assert compact_bytes(64 * 4, 2, 4) / (2 * 64 * 4) == 9 / 16  # 2:4


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%", "90%"])
def test_the_sizes_of_a_model_are_the_sums_of_what_is_written(pattern: str) -> None:
    rule = Pattern.parse(pattern)
    matrices = [sparse(24, 32, 0.0, seed) for seed in range(3)]
    matrices = [W * keep_mask(W.abs(), rule) for W in matrices]
    found = sizes(iter(matrices))
    assert found.weights == 3 * 24 * 32 and found.dense == 2 * found.weights
    assert found.bitmask == sum(encode(W).size for W in matrices)
    assert found.zero_share == sum((W == 0).sum().item() for W in matrices) / found.weights
    assert found.pattern == ((rule.keep, rule.group) if rule.structured else None)
    if rule.structured:
        assert found.compact == compact_bytes(found.weights, rule.keep, rule.group)
        assert found.compact < found.dense


def test_a_matrix_that_breaks_the_pattern_is_not_counted_as_if_it_held() -> None:
    W = sparse(4, 8, 0.0, 0)
    pruned = W * torch.tensor([1, 0, 0, 1] * 2)
    assert (fullest(W, 4), fullest(pruned, 4), fullest(pruned[:, :6], 4)) == (4, 2, 4)
    assert sizes([pruned]).pattern == (2, 4) and sizes([pruned, W]).pattern is None
    assert sizes([torch.zeros(4, 8)]).compact is None


def test_the_bitmask_pays_from_a_sixteenth_of_zeros_on() -> None:
    assert bitmask_bytes(1600, 1501) > 3200 > bitmask_bytes(1600, 1499)
