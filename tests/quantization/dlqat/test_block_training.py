"""Block-wise training of rounded weights: nearer to the dense model, resumable, keeps zeros."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError, ComputeError
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import decoder_blocks
from backend.quantization.dlqat import block_training
from backend.quantization.dlqat.block_training import TrainedGrids
from backend.quantization.dlqat.config import DLQATConfig, DLQATStage, export_order
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.grid import QuantGrid
from backend.reporter import Reporter, SilentReporter
from backend.training.block_reconstruction import Reconstruction, reconstruct, relative_error

ALONE = dict.fromkeys(("gptq", "lora", "rtn", "text_loss"), False)
BLOCKS = DLQATStage.BLOCKS


def config(**fields: object) -> DLQATConfig:
    few = {"bits": 3, "group_size": 32, "block_epochs": 3, "block_rate": 1e-3, "space": "minmax"}
    return DLQATConfig.model_validate({"precision": "float32", **few, **ALONE, **fields})


def begun(model: PreTrainedModel, text: Tensor, folder: Path, **fields: object) -> DLQAT:
    rows = text[:2, :32]
    return DLQAT(model, text[:8, :64], rows, rows, config(**fields), Checkpoints(folder))


def run(qat: DLQAT, reporter: Reporter | None = None) -> DLQAT:
    reporter = reporter or SilentReporter()
    for stage in qat.prepare(reporter):
        qat.make(stage, reporter)
    return qat


def outputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The hidden states [N, L, d] behind the last block."""
    stream = open_stream(model, ids, len(ids))
    hidden = stream.hidden
    for block in range(len(decoder_blocks(model))):
        hidden = run_block(model, stream, block, hidden)
    return next(iter(hidden))


@pytest.mark.parametrize("grid", ["symmetric", "zero-point", "offset"])
@pytest.mark.parametrize("start", ["gptq", "rounded"])
def test_blocks_end_nearer_to_the_dense_model(
    grid: str, start: str, toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    told = recorder()
    qat = run(begun(toy(), calibration, tmp_path, grid=grid, start=start, gptq=True), told)
    texts = calibration[:7, :64], calibration[8:16, :64]  # what it is fitted to, and others
    wrong = dict[str, list[float]]()
    for stage in ("gptq", BLOCKS):
        dense = [outputs(qat.run.model, text) for text in texts]
        with qat.installed(stage):
            wrong[stage] = [
                relative_error(outputs(qat.run.model, text), each).item()
                for text, each in zip(texts, dense, strict=True)
            ]
    assert wrong[BLOCKS][0] < 0.8 * wrong["gptq"][0]
    assert wrong[BLOCKS][1] < wrong["gptq"][1]
    assert len([line for line in told.lines if "Block-wise training. Held-out error" in line]) == 3
    whole = grid != "offset"
    for layer in qat.converted(BLOCKS).values():
        assert (layer.grid.zero == layer.grid.zero.round()).all() or not whole


def test_a_stopped_run_goes_on_to_the_same_bits(
    toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    def codes(qat: DLQAT) -> list[Tensor]:
        return [part for x in qat.converted(BLOCKS).values() for part in x.tensors().values()]

    expected = codes(run(begun(toy(), calibration, tmp_path / "whole", grid="offset")))
    for count in (1, 2):
        stop = recorder(stop=lambda _, n=count: len([*tmp_path.glob("cut/block-wise-0*")]) >= n)
        with pytest.raises(CancelledError):
            run(begun(toy(), calibration, tmp_path / "cut", grid="offset"), stop)
    again = codes(run(begun(toy(), calibration, tmp_path / "cut", grid="offset")))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_dlqat_can_start_from_it(toy, calibration: Tensor, tmp_path: Path) -> None:
    """Its codes before any training are those of the block-wise stage."""
    with pytest.raises(ValueError, match="has no epochs"):
        config(start="block-wise", block_epochs=0)
    fields = {"start": "block-wise", "text_loss": True, "steps": 1, "batch": 2, "length": 32}
    qat = run(begun(toy(), calibration, tmp_path, grid="offset", **fields))
    assert qat.stages == [BLOCKS, DLQATStage.DLQAT]
    made = qat.converted(BLOCKS)
    for name, layer in qat._layers(DLQATStage.DLQAT, SilentReporter()).items():
        found = layer.convert(qat.run.stored, "offset")
        assert (found.codes == made[name].codes).float().mean() > 0.999  # stored scales are rounded
        torch.testing.assert_close(found.dense(), made[name].dense(), rtol=0.01, atol=0.01)


def test_zeros_of_a_pruned_model_stay(toy, calibration: Tensor, tmp_path: Path) -> None:
    model = toy()
    zeros = dict[str, Tensor]()
    qat = begun(model, calibration, tmp_path, keep_zeros=True, grid="zero-point")
    for name, linear in qat.run.linears.items():
        W = linear.read()
        W[:, ::2] = 0
        linear.write(W)
        zeros[name] = W == 0
    qat = run(begun(model, calibration, tmp_path / "pruned", keep_zeros=True, grid="zero-point"))
    for name, layer in qat.converted(BLOCKS).items():
        assert (layer.dense()[zeros[name]] == 0).all()


def test_blocks_left_dense_are_passed_through(toy, calibration: Tensor, tmp_path: Path) -> None:
    qat = run(begun(toy(), calibration, tmp_path, layers="0.*, 2.mlp.*"))
    assert {name.split(".")[2] for name in qat.converted(BLOCKS)} == {"0", "2"}


def test_without_held_out_text_what_diverged_is_refused(
    toy, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*given: Any) -> Reconstruction:
        found = reconstruct(*given)
        assert math.isnan(found.errors[0])  # three segments: none is held out
        return Reconstruction(
            {n: p * math.nan for n, p in found.parameters.items()}, found.errors, 0
        )

    monkeypatch.setattr(block_training, "reconstruct", diverge)
    rows = calibration[:3, :32]
    qat = DLQAT(toy(), rows, rows, rows, config(start="rounded"), Checkpoints(tmp_path))
    with pytest.raises(ComputeError, match="block-wise training") as refused:
        run(qat)
    assert refused.value.field == "block_rate"
    assert not [*tmp_path.glob("block-wise-*")]


@pytest.mark.parametrize("grid", ["symmetric", "offset"])
def test_what_is_trained_is_what_is_stored(
    grid: str, toy, calibration: Tensor, tmp_path: Path
) -> None:
    """At any parameters, the weights of the training are the grid's; gradients pass inside it."""
    qat = begun(toy(), calibration, tmp_path, grid=grid)
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    zero = torch.full((4, 2), 3.3 if grid == "offset" else 4.0)
    trained = TrainedGrids(qat.run, {"x": (W, QuantGrid(3, torch.full((4, 2), 0.3), zero))})
    assert [*trained.parameters] == ["x/W", "x/m"] + ["x/z"] * (grid == "offset")
    if grid == "offset":  # a step moves the outermost value as far by z as by m
        assert trained.rates["x/z"] == pytest.approx(trained.rates["x/m"] * 7 / 2)
    moved = {name: (p + 0.01).requires_grad_() for name, p in trained.parameters.items()}
    What = trained.weights(moved)["x"]
    W, found = trained.result({name: p.detach() for name, p in moved.items()}, "x")
    torch.testing.assert_close(What.detach(), found.nearest(W))
    What.sum().backward()
    code = W.view(4, 2, 32) / found.scale.unsqueeze(-1) + found.zero.unsqueeze(-1)
    inside = (code.round() > 0) & (code.round() < 7)
    gradient = moved["x/W"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient.view(4, 2, 32)[inside], torch.ones(int(inside.sum())))
    outside = (code < -0.5) | (code > 7.5)
    assert outside.any() and (gradient.view(4, 2, 32)[outside] == 0).all()


def test_off_it_leaves_runs_as_they_were() -> None:
    assert BLOCKS not in DLQATConfig().stages
    on = config()
    assert on.stages == [DLQATStage.DENSE, BLOCKS] and on.needs_gptq
    assert not config(start="rounded").needs_gptq
    assert config(start="rounded", space="weighted").needs_energies
    assert export_order().index(BLOCKS) < export_order().index("gptq")
