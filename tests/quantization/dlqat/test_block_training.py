"""Block-wise training: closer to the dense model, resumable, keeps zeros."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ComputeError
from backend.quantization.config import DLQATStage
from backend.quantization.dlqat import block_training
from backend.quantization.dlqat.block_training import TrainedGrids
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import QuantSettings
from backend.training.block_reconstruction import Reconstruction, reconstruct, relative_error
from tests.quantization.dlqat.runs import QUIET, begun, begun_mixture, finished
from tests.toy_layers import block_outputs

BLOCKS = DLQATStage.BLOCKS


FEW = {"bits": 3, "group_size": 32, "stages": "block-wise", "range_search": "minmax"}


@pytest.fixture
def start(toy, calibration: Tensor, tmp_path: Path):
    """Return a function that creates a run in a named folder."""

    def make(folder: str = "run", model: PreTrainedModel | None = None, **fields) -> DLQAT:
        texts = (calibration[:2, :32], calibration[:8, :64])
        return begun(model or toy(), tmp_path / folder, *texts, **FEW | fields)

    return make


@pytest.mark.parametrize(
    ("grid", "begin"), [("symmetric", "gptq"), ("zero-point", "gptq"), ("offset", "rounded")]
)
def test_block_training_gets_closer_to_the_dense_model(
    grid: str, begin: str, start, calibration: Tensor, recorder
) -> None:
    told = recorder()
    qat = finished(start(grid=grid, start=begin, stages=["gptq", BLOCKS]), told)
    texts = calibration[:7, :64], calibration[8:16, :64]  # training segments, and others
    wrong = dict[str, list[float]]()
    for stage in ("gptq", BLOCKS):
        dense = [block_outputs(qat.run.model, text) for text in texts]
        with qat.installed(stage):
            wrong[stage] = [
                relative_error(block_outputs(qat.run.model, text), each).item()
                for text, each in zip(texts, dense, strict=True)
            ]
    assert wrong[BLOCKS][0] < 0.8 * wrong["gptq"][0]
    assert wrong[BLOCKS][1] < wrong["gptq"][1]
    assert len([line for line in told.lines if "Block-wise training. Held-out error" in line]) == 3
    whole = grid != "offset"
    for layer in qat.converted(BLOCKS).values():
        assert (layer.grid.zero == layer.grid.zero.round()).all() or not whole


def test_dlqat_can_start_from_it(start) -> None:
    """Before training, the codes are those of the block-wise stage."""
    with pytest.raises(ValueError, match="not among the stages"):
        start(start="block-wise", stages="dlqat")
    fields = {"start": "block-wise", "steps": 1, "batch": 2, "length": 32}
    qat = finished(start(grid="offset", stages=[BLOCKS, "dlqat"], **fields))
    assert qat.stages == (BLOCKS, "dlqat")
    created = qat.converted(BLOCKS)
    for name, layer in qat._layers("dlqat", QUIET).items():
        result = layer.convert(qat.run.scale_dtype, "offset")
        assert (
            result.codes == created[name].codes
        ).float().mean() > 0.999  # stored scales are rounded
        torch.testing.assert_close(result.dense(), created[name].dense(), rtol=0.01, atol=0.01)


def test_diverged_weights_are_refused_without_held_out_text(
    toy, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*given: Any) -> Reconstruction:
        result = reconstruct(*given)
        assert math.isnan(result.errors[0])  # three segments: none is held out
        return Reconstruction(
            {n: p * math.nan for n, p in result.parameters.items()}, result.errors, 0
        )

    monkeypatch.setattr(block_training, "reconstruct", diverge)
    qat = begun(toy(), tmp_path, calibration[:3, :32], start="rounded", **FEW)
    with pytest.raises(ComputeError, match="block-wise training"):
        finished(qat)
    assert not [*tmp_path.glob("block-wise-*")]


@pytest.mark.parametrize("grid", ["symmetric", "offset"])
def test_trained_and_stored_weights_are_equal(grid: str) -> None:
    """For any parameters the trained weights lie on the grid; gradients pass inside its range."""
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    zero = torch.full((4, 2), 3.3 if grid == "offset" else 4.0)
    starts = {"x": (W, QuantGrid(3, torch.full((4, 2), 0.3), zero))}
    trained = TrainedGrids(starts, {"x": QuantSettings(3, 32, grid, "minmax")})
    assert [*trained.parameters] == ["x/p", "x/m"] + ["x/z"] * (grid == "offset")
    if grid == "offset":  # a step of z moves the outermost value as far as one of m
        assert trained.rates["x/z"] == pytest.approx(trained.rates["x/m"] * 7 / 2)
    moved = {name: (p + 0.01).requires_grad_() for name, p in trained.parameters.items()}
    What = trained.weights(moved)["x"]
    W, result = trained.result({name: p.detach() for name, p in moved.items()}, "x")
    torch.testing.assert_close(What.detach(), result.nearest(W))
    What.sum().backward()
    code = W.view(4, 2, 32) / result.scale.unsqueeze(-1) + result.zero.unsqueeze(-1)
    inside = (code.round() > 0) & (code.round() < 7)
    assert moved["x/p"].grad is not None
    gradient = moved["x/p"].grad / trained.sizes["x"]
    torch.testing.assert_close(gradient.view(4, 2, 32)[inside], torch.ones(int(inside.sum())))
    outside = (code < -0.5) | (code > 7.5)
    assert outside.any() and (gradient.view(4, 2, 32)[outside] == 0).all()


def test_blocks_whose_trained_experts_a_segment_does_not_reach_are_trained(tmp_path: Path) -> None:
    """With three tokens per segment, most of the eight experts see no token."""
    qat = begun_mixture(tmp_path, exclude="self_attn.*, *.experts.[0-6].*", stages="block-wise")
    qat.make("block-wise", QUIET)
    layers = qat.converted("block-wise")
    assert all(".experts.7." in name for name in layers)
    for layer in layers.values():
        assert layer.grid.scale.isfinite().all()
