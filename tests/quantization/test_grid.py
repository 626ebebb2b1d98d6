"""Range searches; codes, scales and zero-points of a layer, and refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.errors import ModelError
from backend.quantization import GRID_NAMES
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.range_search import _gradients, search_range

SPACES = ["minmax", "mse", "weighted", "lsq"]


@pytest.fixture
def W() -> Tensor:  # noqa: N802
    """[24, 96], with a few outliers."""
    random = torch.Generator().manual_seed(0)
    W = torch.randn(24, 96, generator=random) * 0.1
    W[torch.rand(W.shape, generator=random) < 0.01] *= 6
    return W


@pytest.fixture
def energy() -> Tensor:
    """Return energies [96]; some inputs are much larger than others."""
    return torch.randn(96, generator=torch.Generator().manual_seed(1)).exp()


def error(W: Tensor, grid: QuantGrid, energy: Tensor | None = None) -> Tensor:
    """Return the squared error of each group."""
    D = (grid.nearest(W) - W).square() * (1 if energy is None else energy)
    return D.view(len(W), grid.groups, -1).sum(-1)


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_min_max_grid_reaches_both_ends(W: Tensor, bits: int, grid_type: str) -> None:
    grid = search_range(W, bits, 32, grid_type, "minmax")
    step = grid.scale.repeat_interleave(32, 1)
    assert ((grid.nearest(W) - W).abs() <= step * (0.5 + 1e-4)).all()
    if grid_type == "symmetric":
        assert (grid.zero == 2 ** (bits - 1)).all()
    elif grid_type == "zero-point":
        assert torch.equal(grid.zero, grid.zero.round().clamp(0, grid.top))
    else:  # both ends of every group are points of the grid
        V, near = W.view(-1, 32), grid.nearest(W).view(-1, 32)
        for end in (V.argmin(1, keepdim=True), V.argmax(1, keepdim=True)):
            assert torch.allclose(near.gather(1, end), V.gather(1, end), atol=1e-6)


def test_the_min_max_equations(W: Tensor) -> None:
    V = W.view(24, 3, 32)
    low, high = V.amin(-1).clamp(max=0), V.amax(-1).clamp(min=0)
    free = search_range(W, 3, 32, "zero-point", "minmax")
    assert torch.allclose(free.scale, (high - low) / 7)
    assert torch.equal(free.zero, (-low / free.scale).round())
    even = search_range(W, 3, 32, "symmetric", "minmax")
    assert torch.allclose(even.scale, V.abs().amax(-1) / 3.5)


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_is_as_good_as_all_ratios(W: Tensor, bits: int, grid_type: str) -> None:
    """Compared with a search over all ratios."""
    least = torch.full((24, 3), torch.inf)
    for ratio in (1 - step / 100 for step in range(60)):
        V = W.view(24, 3, 32)
        low, high = V.amin(-1).clamp(max=0) * ratio, V.amax(-1).clamp(min=0) * ratio
        if grid_type == "offset":
            middle, half = (V.amax(-1) + V.amin(-1)) / 2, (V.amax(-1) - V.amin(-1)) / 2
            scale = 2 * half * ratio / (2**bits - 1)
            zero = (half * ratio - middle) / scale
        elif grid_type == "symmetric":
            scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 0.5)
            zero = torch.full_like(scale, 2 ** (bits - 1))
        else:
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round().clamp(0, 2**bits - 1)
        least = torch.minimum(least, error(W, QuantGrid(bits, scale, zero)))
    assert error(W, search_range(W, bits, 32, grid_type, "mse")).sum() < 1.01 * least.sum()


def test_each_range_search_is_best_by_its_own_measure(W: Tensor, energy: Tensor) -> None:
    grids = {space: search_range(W, 3, 32, "symmetric", space, energy) for space in SPACES}
    plain = {space: error(W, grid).sum() for space, grid in grids.items()}
    weighted = {space: error(W, grid, energy) for space, grid in grids.items()}
    assert plain["mse"] < min(plain["minmax"], plain["weighted"])
    assert (weighted["weighted"] <= weighted["mse"] + 1e-6).all()
    assert (weighted["lsq"] <= weighted["weighted"]).all()  # not worse in any group
    assert weighted["lsq"].sum() < weighted["weighted"].sum()


@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_learned_grids_are_grids(W: Tensor, energy: Tensor, grid_type: str) -> None:
    grid = search_range(W, 2, 32, grid_type, "lsq", energy)
    assert (grid.scale > 0).all()
    assert (grid.zero == 2).all() == (grid_type == "symmetric")
    if grid_type != "offset":
        assert torch.equal(grid.zero, grid.zero.round().clamp(0, 3))


def test_the_lsq_gradients_are_those_of_the_straight_through_estimator(energy: Tensor) -> None:
    """Compared with autograd and the straight-through round of LSQ+."""
    random = torch.Generator().manual_seed(3)
    V = torch.randn(5, 3, 32, generator=random, dtype=torch.float64)
    scale = (torch.rand(5, 3, generator=random, dtype=torch.float64) + 0.3).requires_grad_()
    zero = torch.full((5, 3), 1.3, dtype=torch.float64, requires_grad=True)
    s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
    u = V / s + z
    q = (u + (u.round() - u).detach()).clamp(0, 3)
    weight = energy.double().view(3, 32)
    ((s * (q - z) - V).square() * weight).sum().backward()
    result = _gradients(V, scale.detach(), zero.detach(), 3, weight)
    assert torch.allclose(result[0], scale.grad, atol=1e-12)
    assert torch.allclose(result[1], zero.grad, atol=1e-12)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_groups_of_zeros_or_of_one_sign_have_a_grid(space: str, grid_type: str) -> None:
    W = torch.stack([torch.zeros(32), torch.linspace(0.1, 1, 32), -torch.linspace(0.1, 1, 32)])
    grid = search_range(W, 4, 16, grid_type, space)
    assert grid.scale.isfinite().all() and (grid.scale > 0).all()
    assert (grid.nearest(W)[0] == 0).all()
    assert (grid.nearest(W) - W).abs().max() < 0.2


def test_large_matrices_are_searched_in_panels(monkeypatch: pytest.MonkeyPatch, W: Tensor) -> None:
    whole = search_range(W, 3, 32, "zero-point", "weighted", torch.ones(96))
    monkeypatch.setattr("backend.quantization.range_search.PANEL_WEIGHTS", 5 * 96)
    parts = search_range(W, 3, 32, "zero-point", "weighted", torch.ones(96))
    assert torch.equal(whole.scale, parts.scale) and torch.equal(whole.zero, parts.zero)


def grid(bits: int = 3, rows: int = 4, groups: int = 2, seed: int = 0) -> QuantGrid:
    random = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, groups, generator=random) + 0.05
    return QuantGrid(bits, scale, torch.randint(0, 2**bits, scale.shape, generator=random).float())


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_rounding_goes_to_the_nearest_point(bits: int, seed: int) -> None:
    """Compared with a search over all points of the grid."""
    space = grid(bits, seed=seed)
    W = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    levels = torch.arange(2**bits) - space.zero.repeat_interleave(8, 1).unsqueeze(-1)
    points = levels * space.scale.repeat_interleave(8, 1).unsqueeze(-1)  # [4, 16, 2^bits]
    least = (points - W.unsqueeze(-1)).abs().amin(-1)
    assert torch.allclose((space.nearest(W) - W).abs(), least, atol=1e-6)


def test_zero_is_on_the_grid() -> None:
    assert torch.equal(grid().nearest(torch.zeros(4, 16)), torch.zeros(4, 16))


def test_a_stored_layer_is_restored() -> None:
    space = grid()
    layer = QuantizedWeight(space, torch.randint(0, 8, (4, 16), dtype=torch.uint8))
    again = quantized_from("x", 3, layer.tensors())
    assert torch.equal(again.dense(), layer.dense()) and again.group_size == 8


@pytest.mark.parametrize(
    ("bits", "part", "tensor", "said"),
    [
        (3, "codes", torch.full((4, 16), 8, dtype=torch.uint8), "codes above 7"),
        (3, "zero", torch.full((4, 2), 9, dtype=torch.uint8), "codes above 7"),
        (3, "codes", torch.zeros(4, 15, dtype=torch.uint8), "2 groups do not divide 15"),
        (3, "codes", torch.zeros(5, 16, dtype=torch.uint8), "5 × 16"),
        (3, "scale", torch.ones(4, 3), "4 × 3"),
        (1, "zero", torch.zeros(4, 2), ""),
        (9, "zero", torch.zeros(4, 2), ""),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(
    bits: int, part: str, tensor: torch.Tensor, said: str
) -> None:
    tensors = QuantizedWeight(grid(), torch.zeros(4, 16, dtype=torch.uint8)).tensors() | {
        part: tensor
    }
    with pytest.raises(ModelError, match=said):
        quantized_from("model.x", bits, tensors)


def test_rounding_on_a_grid_with_offsets_goes_to_the_nearest_point() -> None:
    """Compared with a search over all points, including grids far from 0."""
    space = grid()
    space = QuantGrid(3, space.scale, space.zero + torch.tensor([[0.37, -40.6]]))
    W = torch.randn(4, 16) - space.values(torch.full((4, 16), 3)).neg()
    codes = torch.arange(8).view(8, 1, 1).expand(8, 4, 16)
    points = torch.stack([space.values(each) for each in codes])
    least = (points - W).abs().amin(0)
    assert torch.allclose((space.nearest(W) - W).abs(), least, atol=1e-5)


def q4_1(rows: int = 16, columns: int = 128) -> torch.Tensor:
    """Return weights as in GGUF's Q4_1: d q + m in groups of 32, d and m float16."""
    random = torch.Generator().manual_seed(0)
    V = torch.randn(rows, columns // 32, 32, generator=random) * 0.05
    low, high = V.amin(-1, keepdim=True), V.amax(-1, keepdim=True)
    d = ((high - low) / 15).half().float()
    return (((V - low) / d).round().clamp(0, 15) * d + low.half().float()).view(rows, columns)


def test_offsets_hold_the_weights_of_a_q4_1_file_and_whole_zero_points_do_not() -> None:
    W = q4_1()
    errors = {}
    for type in GRID_NAMES:
        space = search_range(W, 4, 32, type, "minmax").stored(torch.float16, type)
        errors[type] = float((space.nearest(W) - W).norm() / W.norm())
    assert errors["offset"] < 1e-6
    assert errors["zero-point"] > 0.05 and errors["symmetric"] > 0.05


def test_a_scale_too_small_to_store_keeps_the_offset() -> None:
    space = QuantGrid(4, torch.full((1, 1), 1e-9), torch.full((1, 1), -5e8))
    held = space.stored(torch.float16, "offset")
    assert held.values(torch.tensor([[0, 15]])).sub(0.5).abs().max() < 1e-5
