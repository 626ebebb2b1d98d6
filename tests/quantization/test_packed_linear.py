"""Linear layers that run on torch's int4 operator."""

import pytest
import torch
from torch.nn.functional import linear

from backend.quantization import GRID_NAMES, packed_linear
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.packed_linear import FEW, PackedLinear, obstacle


def layer(
    bits: int = 4, rows: int = 32, columns: int = 128, size: int = 32, grid_type: str = "symmetric"
) -> QuantizedWeight:
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    scale = torch.rand(rows, columns // size, generator=random).bfloat16().float() + 0.0625
    scale = scale.bfloat16().float()  # what the operator holds: nothing is lost to it
    zero = torch.full_like(scale, 2 ** (bits - 1))
    if grid_type != "symmetric":
        zero = torch.randint(0, 2**bits, scale.shape, generator=random).float()
    if grid_type == "offset":
        zero += 0.4
    return QuantizedWeight(QuantGrid(bits, scale, zero), codes)


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 40])
def test_it_computes_what_dense_ones_would(bits: int, size: int, grid_type: str, rows: int) -> None:
    held = layer(bits, size=size, grid_type=grid_type)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = linear(x.double(), held.dense().double())
    found = PackedLinear(held)(x)
    assert found.dtype == torch.bfloat16 and found.shape == (rows, 32)
    assert (found.double() - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize(
    ("bits", "grid_type"),
    [(2, "symmetric"), (2, "zero-point"), (3, "zero-point"), (4, "symmetric")],
)
def test_grids_without_an_offset_lose_nothing(bits: int, grid_type: str) -> None:
    held = layer(bits, grid_type=grid_type)
    assert torch.equal(PackedLinear(held).dense().float(), held.dense().bfloat16().float())


def test_groups_that_are_no_power_of_two_are_split() -> None:
    held = layer(3, columns=192, size=96)
    assert obstacle(held) == "" and PackedLinear(held).group == 32
    assert torch.equal(PackedLinear(held).dense().float(), held.dense().bfloat16().float())


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (layer(5), "not 5"),
        (layer(rows=24), "24 outputs"),
        (layer(size=8), "group size 8"),
    ],
)
def test_what_cannot_run_says_why(held: QuantizedWeight, said: str) -> None:
    assert said in obstacle(held)


def test_without_the_operator_everything_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "OPERATOR", "_no_such_operator")
    assert "has no int4 operator" in obstacle(layer())


def test_nothing_of_the_processors_own_layout_is_saved() -> None:
    assert PackedLinear(layer(), torch.zeros(32)).state_dict().keys() == {"bias"}
