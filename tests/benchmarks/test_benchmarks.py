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
from backend.store import frames, queries
from backend.store.session import writing
from backend.store.tables import Job, Result, TensorRow
from benchmarks import amphista
from benchmarks.peers import engine, plain
from benchmarks.screen.load import many_runs, many_tensors

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


@pytest.fixture
def one_run(tables: object) -> None:
    """A run with one figure, and three tensors in two blocks."""
    job = Job(
        id=1,
        kind="sds",
        owner="me",
        config={"model": "toy", "seed": 0},
        config_hash="",
        state="succeeded",
        created_at=1,
        queued_at=1,
    )
    held = [(0, "mlp.up"), (0, "mlp.down"), (1, "mlp.up")]
    tensors = [
        TensorRow(
            job_id=1,
            tensor=f"layers.{block}.{module}.weight",
            stage="dense",
            block=block,
            module=module,
            n=4,
            zeros=0,
            below=0,
            above=0,
            lo=-1.0,
            hi=1.0,
            counts=b"",
            stats={},
            quantiles=[],
        )
        for block, module in held
    ]
    with writing() as session:
        session.add(job)
        session.flush()
        session.add_all([Result(job_id=1, stage="sds", family="perplexity", value=2.0), *tensors])


def test_a_run_is_copied_with_its_figures(one_run: None) -> None:
    many_runs(5)
    jobs = queries.jobs()
    assert [job.id for job in jobs] == [5, 4, 3, 2, 1]
    assert {job.config["seed"] for job in jobs} == {0, 2, 3, 4, 5}
    values = [row.value for row in queries.results([1, 2, 3, 4, 5])]
    assert values[0] == 2.0 and len(set(values)) == 5
    many_runs(6)
    assert [row.value for row in queries.results([1])] == [2.0]


def test_blocks_are_copied_below_one_another(one_run: None) -> None:
    many_tensors(8)
    table = frames.tensor_table(1)
    assert len(table) == 9 and sorted(table["block"].unique()) == [0, 1, 2, 3, 4, 5]
    last = table[table["block"] == 5].iloc[0]
    assert (last["tensor"], last["module"]) == ("layers.5.mlp.up.weight", "mlp.up")
