"""Computed sizes compared with the bytes of written formats."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.evaluation.acceleration import compact_bytes, max_nonzero_per_group, sizes
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern


def sparse(rows: int, columns: int, share: float, seed: int) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=dice)
    return W * (torch.rand(rows, columns, generator=dice) >= share)


def written(W: Tensor) -> int:
    """Size in bytes of a bitmask and of its values."""
    nonzero = W.bfloat16() != 0
    values = W.bfloat16()[nonzero].view(torch.int16).numpy()
    return len(np.packbits(nonzero.numpy().reshape(-1)).tobytes()) + len(values.tobytes())


@given(st.integers(1, 17), st.integers(1, 19), st.floats(0, 1), st.integers(0, 99))
def test_a_bitmask_has_the_computed_size(rows: int, columns: int, share: float, seed: int) -> None:
    W = sparse(rows, columns, share, seed)
    assert sizes([W]).bitmask == written(W)


@pytest.mark.parametrize(
    ("keep", "group", "bits"), [(2, 4, 2), (4, 8, 3), (1, 2, 1), (1, 4, 2), (3, 5, 3)]
)
def test_a_compact_group_has_values_and_indices(keep: int, group: int, bits: int) -> None:
    groups = 40
    actual = compact_bytes(groups * group, keep, group)
    assert actual == groups * keep * 2 + groups * keep * bits / 8
    assert compact_bytes(64 * 4, 2, 4) / (2 * 64 * 4) == 9 / 16  # 2:4


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%", "90%"])
def test_the_sizes_of_a_model_are_the_sums_of_written_bytes(pattern: str) -> None:
    rule = Pattern.parse(pattern)
    matrices = [sparse(24, 32, 0.0, seed) for seed in range(3)]
    matrices = [W * keep_mask(W.abs(), rule) for W in matrices]
    actual = sizes(iter(matrices))
    assert actual.weights == 3 * 24 * 32 and actual.dense == 2 * actual.weights
    assert actual.bitmask == sum(map(written, matrices))
    assert actual.zero_share == sum((W == 0).sum().item() for W in matrices) / actual.weights
    assert actual.pattern == ((rule.keep, rule.group) if rule.structured else None)
    if rule.structured:
        assert actual.compact == compact_bytes(actual.weights, rule.keep, rule.group)
        assert actual.compact < actual.dense


def test_a_matrix_that_breaks_the_pattern_changes_the_pattern_of_the_model() -> None:
    W = sparse(4, 8, 0.0, 0)
    pruned = W * torch.tensor([1, 0, 0, 1] * 2)
    assert (
        max_nonzero_per_group(W, 4),
        max_nonzero_per_group(pruned, 4),
        max_nonzero_per_group(pruned[:, :6], 4),
    ) == (4, 2, 4)
    assert sizes([pruned]).pattern == (2, 4) and sizes([pruned, W]).pattern is None
    assert sizes([torch.zeros(4, 8)]).compact is None
