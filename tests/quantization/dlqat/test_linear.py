"""DL-QAT linear, compared with autograd and with its converted form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from backend.quantization import GRID_NAMES, GridType
from backend.quantization.dlqat.linear import PANEL, DLQATLinear
from backend.quantization.grid import QuantGrid, offsets_of, quantized_from
from backend.quantization.range_search import search_range

ROWS, COLUMNS, SIZE, RANK = 12, 32, 8, 3


def made(
    *,
    bits: int = 3,
    grid_type: GridType = "zero-point",
    moved: bool = True,
    seed: int = 0,
    space: str = "mse",
    **options: object,
) -> DLQATLinear:
    """Return a layer with a clipped grid. `moved`: A, B and m have values as after training."""
    torch.manual_seed(seed)
    base = nn.Linear(COLUMNS, ROWS, bias=False)
    base.weight.data.mul_(2)
    grid = search_range(base.weight.detach(), bits, SIZE, grid_type, space)
    layer = DLQATLinear(base, grid, **{"rank": RANK, "alpha": 6.0, **options})
    if moved:
        nn.init.normal_(layer.B.data, std=0.2)
        layer.m.data.add_(0.1 * torch.randn_like(layer.m))
    return layer


def doubled(layer: DLQATLinear) -> DLQATLinear:
    """Return the same layer in float64."""
    layer.double()
    grid = layer.grid
    layer.grid = QuantGrid(grid.bits, grid.scale.double(), grid.zero.double())
    return layer


def by_autograd(layer: DLQATLinear, x: Tensor) -> Tensor:
    """Compute the forward pass from the equations, with a straight-through round."""
    grid, W0 = layer.grid, layer.base.weight.detach()
    W = (W0 + layer.factor * layer.B @ layer.A).view(ROWS, grid.groups, -1)
    s, z, m = (t.unsqueeze(-1) for t in (grid.scale, grid.zero, layer.m))
    v = W / s
    u = v + z
    q = (u + ((v + z - z.round()).round() + z.round() - u).detach()).clamp(0, grid.top)
    What = m * s * (q - z)
    if layer.keep_zeros:
        What = What * (W0 != 0).view(What.shape)
    return linear(x, What.view(ROWS, COLUMNS))


@settings(deadline=None)
@given(st.integers(2, 8), st.sampled_from([*GRID_NAMES]), st.booleans(), st.integers(0, 10**6))
def test_the_closed_forms_are_those_of_autograd(
    bits: int, grid_type: str, keep_zeros: bool, seed: int
) -> None:
    keep_zeros &= grid_type != "offset"  # refused by the config
    layer = doubled(made(bits=bits, grid_type=grid_type, keep_zeros=keep_zeros, seed=seed))
    layer.base.weight.data[:, ::5] = 0
    x = torch.randn(2, 7, COLUMNS, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 7, ROWS, dtype=torch.float64)
    expected = torch.autograd.grad(by_autograd(layer, x), (x, layer.A, layer.B, layer.m), dy)
    result = torch.autograd.grad(layer(x), (x, layer.A, layer.B, layer.m), dy)
    assert all(g.abs().max() > 1e-3 for g in expected)
    for one, other in zip(result, expected, strict=True):
        assert (one - other).abs().max() < 1e-10 * max(1, other.abs().max())


@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_an_untrained_layer_is_plain_rounding(grid_type: str) -> None:
    layer = made(grid_type=grid_type, moved=False)
    assert torch.equal(layer.effective(), layer.grid.nearest(layer.base.weight.detach()))
    x = torch.randn(4, COLUMNS)
    assert torch.equal(layer(x), linear(x, layer.grid.nearest(layer.base.weight.detach())))


@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_no_level_has_a_code_outside_the_grid(grid_type: str) -> None:
    """Converted to a byte, it would become another code."""
    layer = made(grid_type=grid_type)
    rows, level, _ = next(layer.walk())
    far = torch.full_like(level, 1000.0)
    assert (layer.codes_at(far, rows) == layer.grid.top).all()
    assert not layer.codes_at(-far, rows).any()


def test_a_clipped_weight_passes_nothing_to_the_update() -> None:
    layer = made(moved=False)
    u = layer.grid.codes(layer.base.weight.detach())
    step = layer.grid.scale.repeat_interleave(SIZE, 1)
    raw = (layer.base.weight / step).round() + layer.grid.zero.repeat_interleave(SIZE, 1)
    clipped = raw != u
    assert clipped.any()
    layer.A.data = torch.eye(COLUMNS)  # rank = inputs: dL/dB is c D itself
    layer.B.data = torch.zeros(ROWS, COLUMNS)
    layer(torch.randn(9, COLUMNS)).square().sum().backward()
    assert (layer.B.grad[clipped] == 0).all() and (layer.B.grad[~clipped] != 0).any()


@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_a_converted_layer_computes_the_same_on_scales_that_can_be_stored(grid_type: str) -> None:
    layer, x = made(grid_type=grid_type), torch.randn(5, COLUMNS)
    exact, stored = layer.convert(), layer.convert(torch.float16, grid_type)
    assert torch.equal(exact.dense(), layer.effective())
    assert torch.equal(linear(x, exact.dense()), layer(x))
    assert exact.codes.dtype == torch.uint8 and int(exact.codes.max()) <= 7
    assert torch.equal(exact.codes, stored.codes)
    assert torch.equal(stored.grid.scale, stored.grid.scale.half().float())
    assert not torch.equal(exact.grid.scale, stored.grid.scale)
    assert torch.allclose(stored.dense(), layer.effective(), atol=2e-3)
    if grid_type == "offset":
        offset = offsets_of(stored.grid.scale, stored.grid.zero)
        assert torch.allclose(offset, offset.half().float(), rtol=1e-6)


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("m", [-0.3, 0.0])
def test_a_magnitude_below_zero_is_kept_as_the_sign_of_the_scale(grid_type: str, m: float) -> None:
    layer = made(grid_type=grid_type)
    layer.m.data[0, 1] = m
    frozen = layer.convert(torch.float16, grid_type)
    assert (frozen.grid.scale[0, 1] < 0) == (m < 0)
    assert torch.equal(quantized_from("x", 3, frozen.tensors()).dense(), frozen.dense())
    assert torch.allclose(frozen.dense(), layer.effective(), atol=2e-3)


def test_panels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, results = torch.randn(6, COLUMNS), []
    for panel in (2**17, 5 * COLUMNS):
        monkeypatch.setitem(PANEL, "cpu", panel)
        layer = made()
        layer(x).square().sum().backward()
        results.append((layer.effective(), layer.A.grad, layer.B.grad, layer.m.grad))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_passes_keep_codes_and_gradients_in_float32() -> None:
    gradients, x = [], torch.randn(40, COLUMNS)
    for half in (False, True):
        layer = made()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if half else torch.float32)
        gradients.append(torch.autograd.grad(y.float().square().sum(), (layer.A, layer.B, layer.m)))
    assert torch.equal(layer.effective(torch.bfloat16), layer.effective().bfloat16())
    for exact, rounded in zip(*gradients, strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.02 * exact.norm()


def test_no_tensor_of_the_weights_size_is_saved_for_backward() -> None:
    held: list[Tensor] = []
    layer, x = made(), torch.randn(2, COLUMNS)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        layer(x)
    assert all(t.numel() < ROWS * COLUMNS for t in held)


def test_a_transposed_layer_is_viewed_as_out_in() -> None:
    torch.manual_seed(0)
    base = Conv1D(ROWS, COLUMNS)
    base.bias.data.normal_()
    W = base.weight.detach().T.contiguous()
    layer = DLQATLinear(base, search_range(W, 3, SIZE, "symmetric", "mse"), rank=RANK)
    x = torch.randn(4, COLUMNS)
    assert torch.allclose(layer(x), linear(x, layer.grid.nearest(W), base.bias), atol=1e-6)
    assert layer.shape == (ROWS, COLUMNS)
