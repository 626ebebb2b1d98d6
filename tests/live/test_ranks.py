"""Masks from stored ranks are those of the pruners, with all their ties."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.calibration.second_moments import InputStatistics
from backend.live.dense import KeptTables
from backend.live.ranks import WeightScores, rank_mask, rank_table
from backend.pruning.masks import masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS

PERCENT = st.integers(1, 9999).map(lambda n: f"{n / 100}%")
GROUPS = st.sampled_from(["1:2", "2:4", "3:4", "4:8", "7:8", "5:16", "20:48"])


@given(
    st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([48, 240, 624]), PERCENT | GROUPS,
    st.booleans(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from([2, 30, 10**6]),
)  # fmt: skip
def test_masks_are_those_of_the_pruners(
    seed: int, rows: int, columns: int, text: str, wanda: bool, dtype: torch.dtype, values: int
) -> None:
    random, pattern = torch.Generator().manual_seed(seed), Pattern.parse(text)
    W = (torch.randint(-values, values + 1, (rows, columns), generator=random) / values).to(dtype)
    energy = torch.randint(0, 4, (columns,), generator=random).float()
    scores = WeightScores(W, energy.sqrt() if wanda else None)
    mask = rank_mask(rank_table(scores, pattern.group), scores, pattern)
    pruner = PRUNERS["wanda" if wanda else "magnitude"]
    expected = pruner.prune(W.float(), InputStatistics(energy=energy), pattern, 0.01)
    assert torch.equal(masked(W, mask).float(), expected)
    assert int(mask.sum()) == pattern_keeps(pattern, W.shape, wanda)


def pattern_keeps(pattern: Pattern, shape: torch.Size, by_row: bool) -> int:
    rows, n = shape if by_row else (1, shape.numel())
    if pattern.structured:
        return shape.numel() // pattern.group * pattern.keep
    return rows * (n - int(n * pattern.drop + 1e-6))


def test_tables_stay_within_their_room() -> None:
    tables, made = KeptTables(100), list[str]()

    def get(key: str, size: int = 40) -> None:
        tables.get(key, lambda: made.append(key) or torch.zeros(size, dtype=torch.uint8))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"] and tables.nbytes == 80
    get("large", 500)
    assert tables.nbytes == 500 and tables.find("a") is None
