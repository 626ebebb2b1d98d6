"""Benchmarks do what they say, on toys."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.drafters.config import ARMS
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import load
from benchmarks import amphista
from benchmarks.peers import engine, plain
from tests.conftest import ALL

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


SMALL = (
    "--answers=20",
    "--answer-tokens=12",
    "--steps=2",
    "--batch=2",
    "--seeds=2",
    "--judged=3",
    "--prompts=1",
    "--rounds=1",
    "--threads=1",
)


@pytest.mark.skipif(not ALL, reason="make test-all")
def test_every_arm_is_trained_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", f"--folder={tmp_path}", *SMALL])
    amphista.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accepted"].keys() == ARMS.keys()
    for seeds in found["accepted"].values():
        assert len(seeds) == 2
        assert all(len(each) == 4 and min(each) >= 1 for of in seeds for each in of.values())
    assert found["predicted"].keys() == found["decoded"].keys()
    for exact in ("vanilla", "Prompt lookup"):  # cached states of 16 bits may tip a tree
        assert found["predicted"][exact] == pytest.approx(found["decoded"][exact])
    combined = {f"Prompt lookup + {arm}" for arm in ARMS}
    assert found["speed_up"].keys() == ARMS.keys() | combined | {"vanilla", "Prompt lookup"}
    assert found["generate_ratio"] > 0
