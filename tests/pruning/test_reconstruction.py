"""Block reconstruction lowers the error of blocks, keeps zeros, and resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models.block_forward import Call, open_stream, run_block
from backend.models.blocks import block_linears, decoder_blocks
from backend.pruning.block_work import _divergence_error
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.passes import MaskedWeights
from backend.pruning.stage_store import SDSStageStore, install
from backend.training import block_reconstruction
from backend.training.block_reconstruction import (
    Examples,
    Reconstruction,
    reconstruct,
    relative_error,
)
from tests.pruning.stages import prune
from tests.toy_layers import block_outputs

BLOCKS, EPOCHS = 3, 2


def config(**fields: object) -> SDSConfig:
    few = {"redense_steps": 5, "adjust_steps": 2, "reconstruct": EPOCHS, "control": True}
    return SDSConfig.model_validate({"precision": "float32", **few, **fields})


@pytest.fixture
def ids(calibration: Tensor) -> Tensor:
    return calibration[:12]


def test_blocks_end_nearer_to_the_dense_model(toy, ids: Tensor, tmp_path: Path, recorder) -> None:
    dense, model, recorded = block_outputs(toy(), ids), toy(), recorder()
    result = prune(model, ids, config(), Checkpoints(tmp_path), recorded, heldout_share=0.5)
    wrong, store = {}, SDSStageStore(Checkpoints(tmp_path))
    for stage in config().stages:
        install(model, Checkpoints(tmp_path), stage)
        texts = zip(ids.split(6), dense.split(6), strict=True)  # fitted and held out
        wrong[stage] = [relative_error(block_outputs(model, x), y).item() for x, y in texts]
    for start, reconstructed_stage in (
        (SDSStage.CONTROL, SDSStage.FIRST_BLOCKS),
        (SDSStage.SDS, SDSStage.SDS_BLOCKS),
    ):
        assert wrong[reconstructed_stage][0] < 0.9 * wrong[start][0]
        assert wrong[reconstructed_stage][1] < wrong[start][1]
        assert result.heldout[reconstructed_stage] < result.heldout[start]
        for block in range(BLOCKS):
            before, after = store.weights(start, block), store.weights(reconstructed_stage, block)
            assert all(torch.equal(W == 0, before[m] == 0) for m, W in after.items())
        curve = [
            value
            for name, value, _ in recorded.metrics
            if name == f"reconstruction@{reconstructed_stage}"
        ]
        assert len(curve) == BLOCKS and all(0 < value <= 1 for value in curve)
    assert result.kept in (SDSStage.FIRST_BLOCKS, SDSStage.SDS_BLOCKS)
    assert result.seconds["blocks"] > 0
    progress = [d for d, _, _ in recorded.progressed]
    assert progress == sorted(progress) and progress[-1] == recorded.progressed[-1][1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"until": "first"}, {SDSStage.FIRST_BLOCKS}),
        ({"control": False}, {SDSStage.SDS_BLOCKS}),
        ({"exclude": "1.*"}, {SDSStage.FIRST_BLOCKS, SDSStage.SDS_BLOCKS}),
    ],
)
def test_reconstruction_starts_from_the_last_available_stage(
    fields: dict, expected: set, toy, ids: Tensor, tmp_path: Path
) -> None:
    options = config(**fields)
    result = prune(toy(), ids, options, tmp_path, heldout_share=0)
    assert expected == {SDSStage.FIRST_BLOCKS, SDSStage.SDS_BLOCKS}.intersection(options.stages)
    assert result.kept == options.stages[-1]


def test_targets_are_the_hidden_states_of_the_dense_model(
    toy, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not the dense block's outputs for the hidden states of the compressed model."""
    recorded_examples = list[Examples]()

    def keep(model: PreTrainedModel, examples: Examples, *rest: Any) -> Reconstruction:
        recorded_examples.append(examples)
        return reconstruct(model, examples, *rest)

    monkeypatch.setattr(block_reconstruction, "reconstruct", keep)
    prune(toy(), ids, config(until="first"), tmp_path)
    model, stores = toy(), SDSStageStore(Checkpoints(tmp_path))
    stream = open_stream(model, ids, 1)
    dense = expected = stream.hidden
    for block, examples in enumerate(recorded_examples):
        dense = run_block(model, stream, block, dense)
        assert all(map(torch.equal, examples.targets, dense))
        assert all(map(torch.equal, examples.inputs, expected))
        linears = block_linears(model, block)
        for module, W in stores.weights(SDSStage.FIRST_BLOCKS, block).items():
            linears[module].write(W)
        expected = run_block(model, stream, block, expected)
    assert len(recorded_examples) == BLOCKS


def test_a_token_whose_states_are_zero_counts_for_nothing() -> None:
    targets, wrong = torch.ones(1, 4, 8), torch.zeros(1, 4, 8, requires_grad=True)
    targets[0, 0] = 0
    error = relative_error(targets + wrong * targets, targets)
    error.backward()
    assert error.item() == 0 and wrong.grad is not None and wrong.grad.isfinite().all()
    assert relative_error(2 * targets, targets).item() == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("stage", "field"), [("redense", "damping"), ("sds-blocks", "reconstruct_rate")]
)
def test_errors_of_divergence_name_the_field_to_change(stage: str, field: str) -> None:
    assert _divergence_error("mlp.down_proj", SDSStage(stage)).field == field


def two_steps(model: PreTrainedModel, call: Call, x: Tensor, y: Tensor) -> None:
    """Reference for two steps of Adam on the first block."""
    weights = [linear.layer.weight for linear in block_linears(model, 0).values()]
    masks = [(W != 0).float() for W in weights]
    moments = [(torch.zeros_like(W), torch.zeros_like(W)) for W in weights]
    sizes = [block_reconstruction.sizes_of(W.detach()) for W in weights]
    for step in range(2):
        args, kwargs = call
        output = decoder_blocks(model)[0](x, *args, **kwargs)
        loss = ((output - y).square().sum(-1) / y.square().sum(-1)).mean()
        factor = 1e-2 * (0.5 if step else 1)  # cosine: 1, then the middle
        gradients = torch.autograd.grad(loss, weights)
        tensors = zip(weights, masks, gradients, moments, sizes, strict=True)
        for W, mask, gradient, (m, v), size in tensors:
            gradient = gradient * mask
            m.mul_(0.9).add_(0.1 * gradient)
            v.mul_(0.999).add_(0.001 * gradient.square())
            scale = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8 / size
            W.data.sub_(factor * size * m / (1 - 0.9 ** (step + 1)) / scale)


def test_sizes_follow_the_scales_of_rows_and_columns() -> None:
    random = torch.Generator().manual_seed(0)
    W = torch.randn(128, 256, generator=random) * (torch.rand(128, 256, generator=random) > 0.5)
    W[3], W[:, 5] = 0, 0
    rows, columns = 4.0 ** (torch.arange(128)[:, None] % 16 - 8), 2.0 ** (torch.arange(256) % 8)
    sizes = block_reconstruction.sizes_of(W)
    rescaled = block_reconstruction.sizes_of(W * rows * columns) / rows / columns
    torch.testing.assert_close((W != 0) * rescaled, (W != 0) * sizes, rtol=1e-4, atol=0)
    relative = (W / sizes).square().sum(0) / (W != 0).sum(0)
    torch.testing.assert_close(relative.nan_to_num(1.0), torch.ones(256), rtol=1e-4, atol=0)
    assert block_reconstruction.sizes_of(0 * W).eq(1).all()


def test_steps_equal_those_of_adam_under_a_mask(toy, ids: Tensor) -> None:
    model, ids = toy(), ids[:1]
    stream = open_stream(model, ids, 1)
    x = next(iter(stream.hidden))
    y = next(iter(run_block(model, stream, 0, [x])))
    start = {}
    for module, linear in block_linears(model, 0).items():
        W = linear.read()
        start[module] = W * (W.abs() > W.abs().median())
        linear.write(start[module])
    examples = Examples(stream, 0, [x], [y], 1)
    masked = MaskedWeights(start, 1e-2)
    actual = reconstruct(model, examples, masked, 2, lambda: None, lambda _: None)
    two_steps(model, stream.calls[0][0], x, y)
    weights = masked.weights(actual.parameters)
    for module, linear in block_linears(model, 0).items():
        torch.testing.assert_close(weights[module], linear.read(), rtol=1e-4, atol=1e-6)
    assert actual.epoch == 2


@pytest.mark.parametrize(
    ("rate", "attempts", "lowered"), [(1.0, 4, True), (1.0, 1, False)], ids=["repeated", "dropped"]
)
def test_a_rate_that_is_too_high_is_lowered_or_the_block_is_unchanged(
    rate: float,
    attempts: int,
    lowered: bool,
    toy,
    ids: Tensor,
    tmp_path: Path,
    recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a relative rate of 1 every block diverges; at a quarter of it some blocks improve."""
    monkeypatch.setattr(block_reconstruction, "ATTEMPTS", attempts)
    options, recorded = config(reconstruct_rate=rate, until="first"), recorder()
    prune(toy(), ids, options, tmp_path, recorded)
    error_ratios = [v for name, v, _ in recorded.metrics if name.startswith("reconstruction@")]
    store = SDSStageStore(Checkpoints(tmp_path))
    for block in range(BLOCKS):
        reconstructed, start = (
            store.weights(x, block) for x in (SDSStage.FIRST_BLOCKS, SDSStage.CONTROL)
        )
        same = all(torch.equal(W, start[module]) for module, W in reconstructed.items())
        report = store.report(SDSStage.FIRST_BLOCKS, block).reconstruction
        assert report["left"] == error_ratios[block]
        assert (error_ratios[block] < 1, same) == (lowered, not lowered)
        assert (report["factor"] < 1) == lowered
    assert sum("The others keep their weights" in line for line in recorded.lines) == (not lowered)
    assert sum("times the learning rate" in line for line in recorded.lines) == BLOCKS * lowered
    assert recorded.progressed[-1][0] == recorded.progressed[-1][1]
