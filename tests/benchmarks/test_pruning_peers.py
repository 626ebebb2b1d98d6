"""The yardstick of `make bench-pruning` is the same algorithm: only slower."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import load
from benchmarks.peers import engine, plain

PATTERNS: dict[str, plain.Sparsity] = {"50%": 0.5, "70%": 0.7, "2:4": (2, 4), "1:8": (1, 8)}


@pytest.fixture(scope="module")
def toy() -> PreTrainedModel:
    return load("toy").model


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randint(400, (8, 48), generator=torch.Generator().manual_seed(0))


def weights(model: PreTrainedModel) -> list[Tensor]:
    """Of all linears of all blocks, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [x.read() for b in blocks for x in block_linears(model, b).values()]


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_sides_prune_alike(
    method: str, pattern: str, toy: PreTrainedModel, rows: Tensor
) -> None:
    theirs, ours = deepcopy(toy), deepcopy(toy)
    plain.prune(theirs, rows, method, PATTERNS[pattern])
    engine.prune(ours, rows, method, pattern, "fp32")
    pairs = list(zip(weights(theirs), weights(ours), strict=True))
    same = [((a != 0) == (b != 0)).double().mean().item() for a, b in pairs]
    assert sum(same) / len(same) > 0.999  # rounding turns a few near ties
    for a, b in pairs:
        kept = (a != 0) & (b != 0)
        assert (a - b)[kept].norm() < 0.01 * a.norm()
