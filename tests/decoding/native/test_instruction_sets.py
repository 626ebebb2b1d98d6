"""Products of integer weights in each instruction set this machine can run: the same numbers."""

import shutil
import subprocess

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from backend.compiler import _processor
from backend.decoding.native.library import instructions, library
from backend.decoding.native.model import NativeModel
from backend.decoding.native.weights import HEAD_GROUP, WIDTHS, NativeLinear
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import PackedLinear
from tests.decoding.native.test_decoder import SIZES, built, distance, tokens

# name -> flags of the compiler, and what the processor needs
SETS: dict[str, tuple[tuple[str, ...], bytes]] = {
    "AVX-512 with VNNI": (("-march=cascadelake",), b"avx512_vnni"),
    "AVX-512": (("-march=skylake-avx512",), b"avx512bw"),
    "AVX2": (("-mavx2", "-mfma", "-mno-avx512f"), b"avx2"),
    "plain": ((), b""),
}
INPUTS, OUTPUTS = 192, 80


@pytest.fixture(params=SETS)
def target(request: pytest.FixtureRequest) -> tuple[str, ...]:
    flags, needed = SETS[request.param]
    if needed not in _processor():
        pytest.skip(f"this processor has no {request.param}")
    assert instructions(flags) in (request.param, "NEON")
    return flags


def in_8_bits(x: Tensor, group: int) -> Tensor:
    """The inputs as the decoder rounds them: 127 levels of the largest of each group."""
    groups = x.view(len(x), -1, group)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scale).round() * scale).view_as(x)


def check(linear: NativeLinear, weight: Tensor, group: int) -> None:
    for rows in (1, 2, 3, 5, 8, 13):
        x = torch.randn(rows, INPUTS) * torch.logspace(-2, 2, rows)[:, None]
        x[-1, :group] = 1e3 * torch.randn(group).sign()  # the largest sums there are
        y, expected = linear(x), in_8_bits(x, group) @ weight.T
        assert ((y - expected).abs() <= 1e-5 * (x.abs() @ weight.abs().T)).all()
        alone = torch.cat([linear(row) for row in x.split(1)])
        assert torch.equal(y, alone)  # so drafts change no text


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    ("group", "grid_type"), [(32, "symmetric"), (64, "offset"), (64, "zero-point")]
)
def test_codes(target: tuple[str, ...], bits: int, group: int, grid_type: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    weight[1:3, :group] = torch.tensor([[9.0], [-9.0]])  # codes of one sign
    grid = minmax_grid(weight.view(OUTPUTS, -1, group), bits, grid_type)
    layer = QuantizedWeight(grid, grid.codes(weight).byte())
    native = NativeLinear(PackedLinear(layer), target)
    assert native._matrix.format == bits
    assert native._layout.size == OUTPUTS * INPUTS * bits // 8 + weight.numel() // group * 2 * (
        1 if grid_type == "symmetric" else 2
    )
    scale, zero = (x.repeat_interleave(group, 1) for x in (grid.scale, grid.zero - 2 ** (bits - 1)))
    levels = layer.codes.float() - 2 ** (bits - 1) - zero.bfloat16().float()
    check(native, scale.bfloat16().float() * levels, group)


def test_codes_of_8_bits(target: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    weight[1:3] = torch.tensor([[9.0], [-9.0]])
    groups = weight.view(OUTPUTS, -1, HEAD_GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    rounded = (groups / scale).round().clamp(-128, 127) * scale
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = weight
    check(NativeLinear(linear, target, rounded=True), rounded.view_as(weight), HEAD_GROUP)


def test_gates_far_below_zero_are_closed(target: tuple[str, ...]) -> None:
    model = built(LlamaConfig(**SIZES))
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data *= 100
    native, ids = NativeModel(model, target), tokens(model, 12)
    logits = native.forward(ids, native.new_cache(12), read_out=12)[1]
    assert distance(logits, model.float()(input_ids=ids[None]).logits[0]) < 0.05


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_exported_names_have_one_prefix() -> None:
    listed = ["nm", "--dynamic", "--defined-only", library()._name]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    functions = [line.split()[2] for line in lines if line.split()[1] == "T"]
    assert functions and all(name.startswith("slimscope_") for name in functions)
