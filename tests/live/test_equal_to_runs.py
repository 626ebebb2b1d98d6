"""Live weights are those of the first stages of runs, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.live.dense import DenseModel
from backend.live.model import LiveModel
from backend.models.blocks import LinearWeight, all_linears
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.plan import pruning_plan
from backend.pruning.sds import install, run_sds
from backend.reporter import SilentReporter
from tests.quantization.dlqat.runs import begun, finished

QUIET = SilentReporter()
Make = Callable[..., DenseModel]
Toy = Callable[[], PreTrainedModel]


def pruned(
    model: PreTrainedModel, ids: Tensor, folder: Path, precision: str, **fields: object
) -> PreTrainedModel:
    """The model after the first stage of a run."""
    config = SDSConfig.model_validate(
        {"until": "first", "control": False, "precision": precision, "batch": 5, **fields}
    )
    checkpoints, plan = Checkpoints(folder), pruning_plan(config, all_linears(model))
    run_sds(model, ids, config, plan, checkpoints, QUIET, torch.float16)
    install(model, checkpoints, SDSStage.FIRST)
    return model


def same(live: LiveModel, weights: dict[str, Tensor]) -> bool:
    pairs = [(live.weight(name), W) for name, W in weights.items()]
    return all(torch.equal(a, b) and torch.equal(a.signbit(), b.signbit()) for a, b in pairs)


def read(linears: list[LinearWeight]) -> dict[str, Tensor]:
    return {x.name: x.read() for x in linears}


@pytest.mark.parametrize(
    ("pruner", "pattern", "precision"),
    [("magnitude", "50%", "float32"), ("magnitude", "33.3%", "bfloat16"),
     ("magnitude", "4:8", "float32"), ("wanda", "41.7%", "float32"), ("wanda", "2:4", "bfloat16"),
     ("sparsegpt", "2:4", "bfloat16"), ("sparsegpt", "50%", "float32"), ("alps", "60%", "float32")],
)  # fmt: skip
def test_pruned(
    make: Make, toy: Toy, calibration: Tensor, tmp_path: Path, pruner: str, pattern: str,
    precision: str,
) -> None:  # fmt: skip
    live = LiveModel(make(precision))
    live.apply(dict.fromkeys(live.dense.in_blocks, pattern), pruner)
    fields = {"pattern": pattern, "base": pruner}
    run = read(all_linears(pruned(toy(), calibration[:12], tmp_path, precision, **fields)))
    if pruner != "magnitude":
        assert set(live.made.values()) == {"instant", "dense"}
        assert not same(live, run)  # what a run sees is the model pruned so far
        assert [done for done, _, _ in live.refine()] == [1, 2, 3]
    assert same(live, run)
    assert set(live.made.values()) == {"refined", "dense"}


@pytest.mark.parametrize("grid", ["symmetric", "zero-point", "offset"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rounded(
    make: Make, toy: Toy, calibration: Tensor, tmp_path: Path, precision: str, grid: str
) -> None:
    fields = {"grid": grid, "space": "weighted", "stored": "bfloat16"}
    live, ids = LiveModel(make(precision, **fields)), calibration[:12]
    qat = finished(
        begun(toy(), tmp_path, ids, bits=3, group_size=32, stages="rtn, gptq", exclude="1.mlp.*",
              precision=precision, **fields)
    )  # fmt: skip
    run = {stage: {n: qat.run.weight(stage, x) for n, x in qat.run.linears.items()}
           for stage in qat.stages}  # fmt: skip
    live.apply(dict.fromkeys(qat.run.linears, "int3-g32"))
    assert same(live, run["rtn"])
    codes = live.stored(next(iter(qat.run.linears)))
    assert torch.equal(codes.codes, qat.converted("rtn")[next(iter(qat.run.linears))].codes)
    live.apply({}, quantizer="gptq")
    assert not same(live, run["gptq"])
    assert len([*live.refine()]) == live.dense.blocks
    assert same(live, run["gptq"])


def test_pruned_and_then_rounded(make: Make, toy: Toy, calibration: Tensor, tmp_path: Path) -> None:
    ids, live = calibration[:12], LiveModel(make("float32"))
    whole = dict.fromkeys(live.dense.in_blocks, "2:4+int4-g32")
    sparse = pruned(toy(), ids, tmp_path / "1", "float32", pattern="2:4", base="sparsegpt")
    qat = begun(sparse, tmp_path / "2", ids, bits=4, group_size=32, stages="gptq", keep_zeros=True)
    finished(qat)
    live.apply(whole, "sparsegpt", "gptq")
    assert len([*live.refine()]) == 2 * live.dense.blocks
    assert same(live, {name: qat.run.weight("gptq", x) for name, x in qat.run.linears.items()})


def test_what_is_not_chosen_stays(dense: DenseModel) -> None:
    live = LiveModel(dense)
    first, *others = dense.in_blocks
    live.apply({first: "50%"}, "sparsegpt")
    before = {name: live.weight(name) for name in others}
    assert len([*live.refine()]) == 1  # it ends behind the last block that is refined
    assert same(live, before) and live.made[first] == "refined"
    live.apply({}, "alps")
    assert live.made[first] == "instant"  # it was made by another pruner
