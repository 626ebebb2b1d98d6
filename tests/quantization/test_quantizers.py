"""Post-training quantizers compared with slow reference implementations."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from backend.calibration.second_moments import InputStatistics
from backend.errors import ConfigError
from backend.models.blocks import block_linears, decoder_blocks
from backend.quantization.awq import POWERS, input_scales
from backend.quantization.bases import Basis, rotation
from backend.quantization.gptq import compensate, compensate_ordered
from backend.quantization.grid import QuantGrid
from backend.quantization.hqq import BETA, KAPPA, ROUNDS, P
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import QUANTIZERS, BlockLayers
from backend.quantization.rotation import rotations

ROWS, COLUMNS, SIZE = 12, 64, 16
SETTINGS = QuantSettings(3, SIZE, "offset", "minmax")


@pytest.fixture
def layer(make_layer: Callable) -> SimpleNamespace:
    return make_layer(ROWS, COLUMNS, tokens=600)


def quantized(name: str, W: Tensor, inputs: InputStatistics, settings: QuantSettings) -> Tensor:
    V, grid = QUANTIZERS[name].quantize(W, inputs, settings, 0.01)
    return grid.nearest(V)


@pytest.mark.parametrize("name", [name for name, each in QUANTIZERS.items() if each.by_rows])
@pytest.mark.parametrize("space", ["minmax", "weighted"])
def test_a_row_does_not_depend_on_the_others(layer, name: str, space: str) -> None:
    settings = QuantSettings(3, SIZE, "offset", space)
    whole = quantized(name, layer.W, layer.inputs, settings)
    parts = [quantized(name, rows, layer.inputs, settings) for rows in layer.W.split((5, 7))]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


# HQQ ----------------------------------------------------------------------------------------------


def p_norm(W: Tensor, grid: QuantGrid) -> Tensor:
    """Return the p-norm of the errors of each group."""
    return (grid.nearest(W) - W).view(ROWS, -1, SIZE).abs().pow(P).sum(-1)


def test_hqq_is_the_authors_iteration_with_the_best_round_of_each_group(layer) -> None:
    W = layer.W
    W[torch.rand(W.shape, generator=torch.Generator().manual_seed(0)) < 0.02] *= 8
    start = search_range(W, 3, SIZE, "offset", "minmax")
    V, s, z, beta = W.view(ROWS, -1, SIZE), start.scale[..., None], start.zero[..., None], BETA
    least = p_norm(W, start)
    for _ in range(ROUNDS):
        q = (V / s + z).round().clamp(0, 7)
        d = V / s - (q - z)  # in steps of the grid; the authors use the units of W
        e = d.sign() * (d.abs() - d.abs().pow(P - 1) / beta).clamp(min=0)
        z, beta = (q - V / s + e).mean(-1, keepdim=True), beta * KAPPA
        least = least.minimum(p_norm(W, QuantGrid(3, start.scale, z.squeeze(-1))))
    result = search_range(W, 3, SIZE, "offset", "hqq")
    assert torch.allclose(p_norm(W, result), least, rtol=1e-3)
    assert torch.equal(result.scale, start.scale)
    assert p_norm(W, result).sum() < 0.99 * p_norm(W, start).sum()


def test_hqq_leaves_whole_zero_points_whole_and_symmetric_grids_alone(layer) -> None:
    result = search_range(layer.W, 3, SIZE, "zero-point", "hqq")
    assert torch.equal(result.zero, result.zero.round().clamp(0, 7))
    assert (
        p_norm(layer.W, result)
        <= p_norm(layer.W, search_range(layer.W, 3, SIZE, "zero-point", "minmax")) + 1e-6
    ).all()
    even = search_range(layer.W, 3, SIZE, "symmetric", "hqq")
    assert torch.equal(even.zero, torch.full_like(even.zero, 4))


# bases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, 9, 12, 64, 576])
def test_rotations_are_orthogonal_and_spread_every_input(size: int) -> None:
    R = rotation(size)
    assert torch.allclose(R @ R.T, torch.eye(size), atol=1e-5)
    if size & size - 1 == 0:
        assert torch.allclose(R.abs(), torch.full_like(R, size**-0.5), atol=1e-6)


@pytest.mark.parametrize(
    "basis",
    [
        Basis(torch.linspace(-2, -0.5, 24)),
        Basis(None, 24, 0),
        Basis(None, 0, 4),
        Basis(None, 8, 16),
        Basis(torch.linspace(0.5, 2, 24), 12, 16),
    ],
    ids=str,
)
def test_a_basis_changes_nothing_by_itself(basis: Basis) -> None:
    torch.manual_seed(0)
    W, X = torch.randn(16, 24), torch.randn(24, 200)
    inside = basis.into(W)
    assert torch.allclose(basis.back(inside), W, atol=1e-5)
    # equal outputs, up to their rotation, and the second moments of `gram`
    D = torch.randn(16, 24)
    H = basis.gram(X @ X.T)
    result = torch.einsum("ij,jk,ik", D, H, D)
    assert torch.allclose(result, (basis.back(D) @ X).square().sum(), rtol=1e-3)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """Return a model with norm weights other than 1, and two heads for each value."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
    return model


def layers_of(model: LlamaForCausalLM, block: int, settings: QuantSettings) -> BlockLayers:
    """Return the layers of a block with inputs of uneven energy. q, k and v share their inputs, as
    do gate and up."""
    linears, shared = block_linears(model, block), {}
    random = torch.Generator().manual_seed(block)
    for module, linear in linears.items():
        role = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
        last = module.split(".")[-1]
        X = torch.randn(linear.columns, 300, generator=random)
        X *= torch.randn(linear.columns, 1, generator=random).exp()
        H = X @ X.T / 300
        own = InputStatistics(300, H.diagonal(), H)
        shared.setdefault(role.get(last, last), own)
        shared[module] = shared[role.get(last, last)]
    weights = {module: linear.read() for module, linear in linears.items()}
    return BlockLayers(
        decoder_blocks(model)[block], weights, shared, dict.fromkeys(weights, settings)
    )


def test_the_rotated_model_computes_the_same(llama: LlamaForCausalLM) -> None:
    """Before rounding, with R, S and the norms merged into the weights."""
    ids = torch.arange(20)[None] * 3
    exact, width = llama(ids).logits, llama.config.hidden_size
    final = llama.model.norm.weight.clone()
    for index, block in enumerate(decoder_blocks(llama)):
        bases = rotations(layers_of(llama, index, SETTINGS))
        for module, linear in block_linears(llama, index).items():
            linear.write(bases[module].into(linear.read()))
        block.input_layernorm.weight.data.fill_(1)
        block.post_attention_layernorm.weight.data.fill_(1)
    llama.model.embed_tokens.weight.data = llama.model.embed_tokens.weight @ rotation(width)
    llama.lm_head.weight.data = (llama.lm_head.weight * final) @ rotation(width)
    llama.model.norm.weight.data.fill_(1)
    assert torch.allclose(llama(ids).logits, exact, atol=1e-4)


def test_the_scaled_model_computes_the_same(llama: LlamaForCausalLM) -> None:
    """Norms and the rows of up_proj and v_proj absorb the scales of AWQ."""
    ids = torch.arange(20)[None] * 3
    exact = llama(ids).logits
    for index, block in enumerate(decoder_blocks(llama)):
        bases, linears = (
            input_scales(layers_of(llama, index, SETTINGS)),
            block_linears(llama, index),
        )
        for module, linear in linears.items():
            linear.write(bases[module].into(linear.read()))
        t = {module: basis.scale for module, basis in bases.items()}
        assert all(scale is not None and (scale > 0).all() for scale in t.values())
        block.input_layernorm.weight.data /= t["self_attn.q_proj"]
        block.post_attention_layernorm.weight.data /= t["mlp.up_proj"]
        up, values = linears["mlp.up_proj"], linears["self_attn.v_proj"]
        up.write(up.read() / t["mlp.down_proj"][:, None])
        of_values = t["self_attn.o_proj"].view(3, 2, 8)[:, 0].flatten()
        values.write(values.read() / of_values[:, None])
    assert torch.allclose(llama(ids).logits, exact, atol=1e-4)


def test_awq_takes_the_power_with_the_least_error_of_all_layers_that_share_the_inputs(
    llama: LlamaForCausalLM,
) -> None:
    layers = layers_of(llama, 0, SETTINGS)
    bases, inputs = input_scales(layers), layers.inputs["mlp.up_proj"]
    scale = bases["mlp.gate_proj"].scale
    assert torch.equal(bases["mlp.up_proj"].scale, scale)

    def error(t: Tensor) -> float:
        total = 0.0
        for module in ("mlp.gate_proj", "mlp.up_proj"):
            W = layers.weights[module]
            grid = search_range(W * t, 3, SIZE, "offset", "minmax")
            D = grid.nearest(W * t) / t - W
            total += float((D @ inputs.gram * D).sum())
        return total

    scales = [inputs.energy.sqrt() ** power for power in POWERS]
    tried = [error(t / (t.max() * t.min()).sqrt()) for t in scales]
    assert error(scale) == pytest.approx(min(tried), rel=1e-4)
    assert min(tried) < 0.9 * tried[0]  # power 0: plain rounding


@pytest.mark.parametrize("find", [rotations, input_scales])
def test_other_blocks_are_refused(find: Callable) -> None:
    layers = BlockLayers(nn.Module(), {"attn.c_attn": torch.ones(4, 4)}, {}, {})
    with pytest.raises(ConfigError, match=r"not have the structure of LLaMA.s: attn\.c_attn"):
        find(layers)


# GPTQ ---------------------------------------------------------------------------------------------


def slowly(W: Tensor, H: Tensor, order: list[int], grid_at: Callable) -> Tensor:
    """Optimal brain quantization as derived in the paper: the inverse Hessian of the remaining
    columns is recomputed after each column. `grid_at(W, j)`: the grid of column j, given the
    weights by then."""
    W, rounded, left = W.double().clone(), torch.zeros_like(W), order
    while left:
        j, inverse = left[0], torch.linalg.inv(H[left][:, left].double())
        rounded[:, j] = grid_at(W.float(), j).nearest(W[:, j : j + 1].float())[:, 0]
        step = (W[:, j] - rounded[:, j]) / inverse[0, 0]
        W[:, left] -= torch.outer(step, inverse[0])
        left = left[1:]
    return rounded


def grid_of(V: Tensor, *_: object) -> QuantGrid:
    return search_range(V, 3, 0, "zero-point", "minmax")


@pytest.mark.parametrize("block", [128, 16])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("size", [64, 16])
def test_gptq_equals_the_algorithm_of_the_paper(
    layer, size: int, in_order: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With act-order the grid is that of the dense weights; otherwise each group has one when its
    first column is reached."""
    monkeypatch.setattr("backend.quantization.gptq.BLOCK", block)
    H = layer.inputs.gram + 0.01 * layer.inputs.energy.mean() * torch.eye(COLUMNS)
    dense, grids = search_range(layer.W, 3, size, "zero-point", "minmax"), dict[int, QuantGrid]()

    def grid_at(W: Tensor, j: int) -> QuantGrid:
        group = j // size
        if in_order:
            return QuantGrid(3, dense.scale[:, group, None], dense.zero[:, group, None])
        if group not in grids:
            grids[group] = grid_of(W[:, j : j + size].contiguous())
        return grids[group]

    if in_order:
        order, U = layer.inputs.ordered_root(0.01)
        assert torch.equal(order, layer.inputs.energy.argsort(descending=True, stable=True))
        result = dense.nearest(compensate_ordered(layer.W, order, U, dense))
    else:
        order, U = torch.arange(COLUMNS), layer.inputs.inverse_root(0.01)
        W, grid = compensate(layer.W, U, size, grid_of)
        result = grid.nearest(W)
    same = (result - slowly(layer.W, H, order.tolist(), grid_at)).abs() < 1e-4
    assert same.float().mean() > 0.99  # a weight in the middle of two points may go either way


@pytest.mark.parametrize("size", [64, 16])
def test_zeros_stay_and_later_columns_compensate(layer, size: int) -> None:
    layer.W[:, ::3] = 0
    U = layer.inputs.inverse_root(0.01)
    W, grid = compensate(layer.W, U, size, grid_of, keep_zeros=True)
    rounded = grid.nearest(W)
    assert (W[:, ::3] == 0).all() and (rounded[:, ::3] == 0).all()
    naive, its = compensate(layer.W, U, size, grid_of)
    assert layer.error(rounded) < layer.error(its.nearest(naive) * (layer.W != 0))
