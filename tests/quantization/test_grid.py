"""Codes, scales and zero-points of a layer, and refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ModelError
from backend.quantization import GRID_NAMES
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.range_search import search_range


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
    ("part", "tensor", "said"),
    [
        ("codes", torch.full((4, 16), 8, dtype=torch.uint8), "codes above 7"),
        ("zero", torch.full((4, 2), 9, dtype=torch.uint8), "codes above 7"),
        ("codes", torch.zeros(4, 15, dtype=torch.uint8), "2 groups do not divide 15"),
        ("codes", torch.zeros(5, 16, dtype=torch.uint8), "5 × 16"),
        ("scale", torch.ones(4, 3), "4 × 3"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(
    part: str, tensor: torch.Tensor, said: str
) -> None:
    tensors = QuantizedWeight(grid(), torch.zeros(4, 16, dtype=torch.uint8)).tensors() | {
        part: tensor
    }
    with pytest.raises(ModelError, match=said):
        quantized_from("model.x", 3, tensors)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    tensors = QuantizedWeight(grid(), torch.zeros(4, 16, dtype=torch.uint8)).tensors()
    with pytest.raises(ModelError):
        quantized_from("model.x", bits, tensors | {"zero": torch.zeros(4, 2)})


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
