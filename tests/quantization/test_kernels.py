"""The C++ kernels against PyTorch: the same levels, gradients, columns and errors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backend.kernels import rounding as kernels
from backend.kernels.library import kernels_or_none
from backend.kernels.rounding import RoundedRows, usable
from backend.linalg.gram import inverse_root
from backend.quantization import GRID_NAMES, gptq, range_search
from backend.quantization.dlqat import linear
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.grid import QuantGrid, StackedGrid
from backend.quantization.plan import QuantSettings

ROWS = 21
SHAPES = [(48, 8), (96, 48), (192, 64), (300, 100), (130, 130)]  # inputs, and inputs per group


@pytest.fixture(autouse=True)
def built() -> None:
    if kernels_or_none() is None:
        pytest.skip("no kernels can be built here")


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch):
    """Compute something without the kernels."""

    def compute(call):
        with monkeypatch.context() as patch:
            for module in (gptq, linear, range_search):
                patch.setattr(module, "usable", lambda *_, **__: False)
            return call()

    return compute


def layer_of(columns: int, size: int, grid_type: str, rank: int, keep_zeros: bool) -> DLQATLinear:
    torch.manual_seed(columns + rank)
    base = nn.Linear(columns, ROWS, bias=False)
    base.weight.data[:, ::7] = 0
    grid = range_search.search_range(base.weight.detach(), 3, size, grid_type, "mse")
    layer = DLQATLinear(base, grid, rank=rank, alpha=8.0, keep_zeros=keep_zeros)
    nn.init.normal_(layer.B.data, std=1.0)
    layer.m.data.add_(0.1 * torch.randn_like(layer.m))
    return layer


@pytest.mark.parametrize(("columns", "size"), SHAPES)
@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize(("rank", "keep_zeros"), [(0, False), (5, True), (20, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_in_training(
    columns: int, size: int, grid_type: str, rank: int, keep_zeros: bool, dtype, in_pytorch
) -> None:
    if keep_zeros and grid_type == "offset":
        keep_zeros = False  # refused by the config
    layer = layer_of(columns, size, grid_type, rank, keep_zeros)

    def computed() -> list[Tensor]:
        level, inside = (torch.cat(x) for x in zip(*(y[1:] for y in layer.walk()), strict=True))
        G = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
        out, dm = torch.empty_like(G), torch.empty_like(layer.m.data)
        for rows in layer.parts(dtype):
            layer.panel(rows, dtype).backward(G[rows], dm[rows], out[rows])
        return [level, inside, layer.effective(dtype), out, G, dm]

    assert isinstance(layer.panel(slice(0, ROWS), dtype), RoundedRows)
    *result, dm = computed()
    *expected, dm_wanted = in_pytorch(computed)
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)
    assert 0 < result[1].mean() < 1 or not rank
    assert torch.equal(result[2], result[3])
    assert torch.allclose(dm, dm_wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 40])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(96, 48, "symmetric", 3, False)
    expected = layer.effective()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(kernels, "LEAST", 0)
    assert torch.equal(layer.effective(), expected)


@pytest.mark.parametrize(("columns", "size"), SHAPES)
@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_figures_of_snapshots(columns: int, size: int, grid_type: str, in_pytorch) -> None:
    layer = layer_of(columns, size, grid_type, 4, grid_type != "offset")
    changed, counts, error, inside = layer.figures(layer.dense, slice(0, ROWS))
    expected = in_pytorch(lambda: layer.figures(layer.dense, slice(0, ROWS)))
    assert changed == expected[0] > 0 and torch.equal(inside, expected[2 + 1])
    assert torch.equal(counts, expected[1]) and counts.sum() == ROWS * columns
    assert torch.allclose(error, expected[2], rtol=1e-5)


def test_nan_stays_nan() -> None:
    """Otherwise a diverging training would continue."""
    layer = layer_of(96, 48, "symmetric", 3, False)
    for value in (torch.nan, torch.inf):
        G = torch.full((ROWS, 96), value, dtype=torch.bfloat16)
        dm = torch.empty_like(layer.m.data)
        layer.panel(slice(0, ROWS), G.dtype).backward(G, dm, None)
        assert not torch.isfinite(G[:, 1:]).all() and not torch.isfinite(dm).all()
    layer.B.data[0] = torch.nan
    changed, counts, _, _ = layer.figures(
        layer.dense, slice(0, ROWS)
    )  # no code lies outside the counts
    assert counts.sum() == ROWS * 96 and changed >= 96


def test_kernels_leave_other_devices_precisions_and_layouts_to_pytorch() -> None:
    W = torch.randn(4, 6)
    assert usable(W) and usable(W, parts=(W[:, 2:4],))
    for other in (W.double(), W.T, W[:, 2:4], W.to("meta")):
        assert not usable(W, other)


@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize("name", ["gptq", "gptq-order", "widths"])
@pytest.mark.parametrize(("columns", "size"), [(192, 64), (96, 48), (300, 0), (24, 8)])
@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_gptq(
    name: str, columns: int, size: int, keep_zeros: bool, grid_type: str, in_pytorch
) -> None:
    torch.manual_seed(0)
    W, X = torch.randn(ROWS, columns), torch.randn(columns, 2 * columns)
    W[:, ::5] = 0
    settings = QuantSettings(
        bits=3,
        group_size=size,
        grid=grid_type,
        range_search="weighted",
        layers=("a",),
        keep_zeros=keep_zeros and grid_type != "offset",
    )
    H = X @ X.T / X.shape[1]
    method = {"gptq": gptq.gptq, "gptq-order": gptq.gptq_order}.get(name)

    def computed() -> tuple[Tensor, QuantGrid]:
        inputs = gptq.InputStatistics(2 * columns, H.diagonal().clone(), H.clone())
        if method:
            return method(W, inputs, settings, 0.01)
        wider = replace(settings, bits=4)
        return gptq.gptq_widths(W, inputs, [settings, wider], 0.01)[1]

    (V, grid), (V_wanted, expected) = computed(), in_pytorch(computed)
    codes, codes_wanted = grid.codes(V), expected.codes(V_wanted)
    assert (
        codes != codes_wanted
    ).float().mean() < 0.01  # a tie rounded differently changes its row
    assert torch.allclose(V, V_wanted, atol=1e-3) or (V - V_wanted).abs().median() < 1e-4


def test_each_column_may_have_a_grid_and_each_row_a_highest_code() -> None:
    torch.manual_seed(0)
    W, U = torch.randn(ROWS, 40), inverse_root(torch.eye(40) + 0.1, 0.01)
    scale, zero = torch.rand(ROWS, 40) + 0.1, torch.randint(0, 4, (ROWS, 40)).float()
    tops = torch.where(torch.arange(ROWS) % 2 == 0, 3.0, 15.0)
    grid, kept = StackedGrid(4, scale, zero, tops), torch.rand(ROWS, 40) > 0.2
    V = W.clone()
    errors = kernels.gptq_columns(V, U, scale, zero, tops, kept)
    for j in range(40):
        w = W[:, j].clone()
        W[:, j] *= kept[:, j]
        q = (W[:, j] / scale[:, j]).round().add(zero[:, j]).clamp(min=0).minimum(grid.tops)
        e = (w - (q - zero[:, j]) * scale[:, j]) / U[j, j]
        assert torch.allclose(errors[:, j], e, atol=1e-4)
        W[:, j + 1 :] -= e[:, None] * U[j, j + 1 :]
    assert torch.allclose(V, W, atol=1e-4)
    with pytest.raises(ValueError, match="40 columns on 3 groups"):
        kernels.gptq_columns(V, U, scale[:, :3], zero[:, :3], tops, None)


@pytest.mark.parametrize(("columns", "size"), SHAPES)
@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_errors_of_grids(columns: int, size: int, grid_type: str, in_pytorch) -> None:
    torch.manual_seed(0)
    V, h = torch.randn(ROWS, columns // size, size), torch.rand(columns // size, size)
    low, high, ratio = V.amin(-1), V.amax(-1), torch.tensor([1.0, 0.8, 0.5]).view(-1, 1, 1)
    grid = range_search.group_scales(low, high, 3, grid_type, ratio)
    grid = QuantGrid(3, grid.scale, grid.zero.expand_as(grid.scale).contiguous())
    result = range_search._error(V, grid, h)
    assert torch.allclose(result, in_pytorch(lambda: range_search._error(V, grid, h)), rtol=1e-5)


def test_without_a_compiler_pytorch_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(192, 64, "symmetric", 4, False)
    monkeypatch.setattr(kernels, "kernels_or_none", lambda: None)
    assert not isinstance(layer.panel(slice(0, ROWS)), RoundedRows)
    layer(torch.ones(3, 192)).square().sum().backward()
    assert layer.A.grad.isfinite().all() and layer.m.grad.any()
