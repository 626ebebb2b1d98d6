"""Second moments compared with recorded inputs, for several architectures and precisions."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backend.calibration.second_moments import (
    DenseReference,
    InputCollector,
    InputStatistics,
    StatisticsLevel,
    output_energy,
)
from backend.errors import CancelledError, ComputeError
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import LinearWeight, block_linears
from tests.models.tiny_models import FAMILIES

LENGTH = 12


def build(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **FAMILIES[kind] | {"num_hidden_layers": 2})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(50, (8, LENGTH), generator=torch.Generator().manual_seed(0))


def block_inputs(
    model: PreTrainedModel, ids: Tensor, block: int, need: StatisticsLevel, batch: int
) -> dict[str, InputStatistics]:
    """Input statistics of `block` from a run block by block."""
    stream = open_stream(model, ids, batch)
    hidden = stream.hidden
    for before in range(block):
        hidden = run_block(model, stream, before, hidden)
    with InputCollector(block_linears(model, block), need) as collector:
        run_block(model, stream, block, hidden)
    return collector.finish()


def whole_model_inputs(model: PreTrainedModel, ids: Tensor, block: int) -> dict[str, Tensor]:
    """Inputs X [in, N] of the linears of `block` from forward passes of the entire model."""
    seen: dict[str, Tensor] = {}
    for name, linear in block_linears(model, block).items():

        def keep(_: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            seen[name] = args[0].detach().flatten(0, -2).double().T

        linear.layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.usefixtures("two_threads")  # batches run in parallel
def test_grams_equal_those_of_the_whole_model(
    kind: str, attention: str, batch: int, ids: Tensor
) -> None:
    model = build(kind, attention)
    actual = block_inputs(model, ids, 1, StatisticsLevel.GRAM, batch)
    expected = whole_model_inputs(model, ids, 1)
    assert actual.keys() == expected.keys()
    for name, X in expected.items():
        H = X @ X.T / X.shape[1]
        assert torch.allclose(actual[name].gram.double(), H, rtol=1e-5, atol=1e-5 * H.max().item())
        assert actual[name].tokens == ids.numel()


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_layers_that_read_the_same_tensor_share_one_gram(kind: str, ids: Tensor) -> None:
    groups: dict[int, list[str]] = {}
    for name, inputs in block_inputs(build(kind), ids, 0, StatisticsLevel.GRAM, 2).items():
        groups.setdefault(id(inputs), []).append(name.rpartition(".")[2])
    actual = sorted(sorted(group) for group in groups.values())
    attention = ["k_proj", "q_proj", "v_proj"]
    if kind == "llama":
        assert actual == [["down_proj"], ["gate_proj", "up_proj"], attention, ["o_proj"]]
    else:
        assert actual == [["fc1"], ["fc2"], attention, ["out_proj"]]


@pytest.mark.usefixtures("two_threads")
def test_parallel_batches_are_summed_in_the_same_order(ids: Tensor) -> None:
    """Passes also end at the last layer, whichever batch is first."""
    model = build("llama")
    stream, linears = open_stream(model, ids, 1), block_linears(model, 1)
    until = [linears["mlp.gate_proj"].layer, linears["self_attn.q_proj"].layer]
    actual = []
    for threads in (2, 2, 2, 1):
        torch.set_num_threads(threads)
        with InputCollector(linears, StatisticsLevel.GRAM) as collector:
            assert not [*run_block(model, stream, 1, stream.hidden, until=until)]
            inputs = collector.finish()
        assert inputs["mlp.down_proj"].tokens == 0  # before any pass reaches the layer
        actual.append(inputs["mlp.up_proj"].gram)
    assert torch.equal(actual[0], actual[1]) and torch.equal(actual[1], actual[2])
    assert torch.allclose(actual[0], actual[3], rtol=1e-5)


def linear(columns: int) -> dict[str, LinearWeight]:
    return {"x": LinearWeight("model.x", 0, "x", nn.Linear(columns, 4))}


@torch.no_grad()
def collected(
    X: Tensor, need: StatisticsLevel = StatisticsLevel.GRAM, pieces: int = 1
) -> InputStatistics:
    linears = linear(X.shape[-1])
    layer = linears["x"].layer.to(X.dtype)
    with InputCollector(linears, need) as collector:
        for piece in X.chunk(pieces):
            layer(piece)
    return collector.finish()["x"]


def test_a_wide_gram_in_bfloat16_is_exact_and_symmetric() -> None:
    """The matrix is wider than a panel; products of bfloat16 values are exact."""
    X = torch.randn(6, 50, 600, generator=torch.Generator().manual_seed(0)).bfloat16()
    H = collected(X, pieces=3).gram
    rows = X.double().view(-1, 600)
    exact = rows.T @ rows / len(rows)
    assert torch.equal(H, H.T)
    assert (H.double() - exact).abs().max() < 1e-6 * exact.abs().max()


def test_the_objective_is_the_error_of_the_outputs() -> None:
    X = torch.randn(4, 30, 16, generator=torch.Generator().manual_seed(0))
    dense, W = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    inputs = collected(X)
    rows = X.view(-1, 16)
    direct = (((W - dense) @ rows.T) ** 2).sum().item() / len(rows)
    energy = ((dense @ rows.T) ** 2).sum().item() / len(rows)
    assert output_energy(W - dense, inputs) == pytest.approx(direct, rel=1e-5)
    assert DenseReference(dense, inputs).relative_error(W) == pytest.approx(
        direct / energy, rel=1e-5
    )


def test_the_error_for_16_bit_inputs_is_almost_exact() -> None:
    random = torch.Generator().manual_seed(0)
    X = (torch.randn(4, 300, 64, generator=random) * torch.randn(64, generator=random)).bfloat16()
    dense, W = torch.randn(2, 96, 64, generator=random)
    reference, exact = DenseReference(dense, collected(X)), X.double().view(-1, 64)
    actual = [((V.double() @ exact.T) ** 2).sum() for V in (W - dense, dense)]
    assert reference.relative_error(W) == pytest.approx((actual[0] / actual[1]).item(), rel=1e-3)


def test_a_layer_without_input_has_no_error() -> None:
    inputs = collected(torch.zeros(2, 3, 8))
    assert DenseReference(torch.ones(4, 8), inputs).relative_error(torch.zeros(4, 8)) == 0


def test_inputs_that_are_not_finite_are_reported_with_the_layer() -> None:
    X = torch.randn(2, 3, 8)
    X[1, 2, 3] = torch.inf
    with pytest.raises(ComputeError, match=r"model\.x"):
        collected(X)


def test_stopping_removes_all_hooks(ids: Tensor) -> None:
    model = build("llama")
    stream, linears = open_stream(model, ids, 2), block_linears(model, 0)

    def stop() -> None:
        raise CancelledError

    with pytest.raises(CancelledError), InputCollector(linears, StatisticsLevel.GRAM):
        run_block(model, stream, 0, stream.hidden, stop)
    assert not any(one.layer._forward_pre_hooks for one in linears.values())
