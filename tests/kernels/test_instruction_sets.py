"""The kernels of three instruction sets beside a slow oracle; with `make test-all` of each, in
hardware or emulated."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from backend.decoding.native.model import NativeModel
from backend.decoding.native.weights import HEAD_GROUP, WIDTHS, NativeLinear
from backend.kernels import rounding
from backend.kernels.library import Kernels, described, kernels, library
from backend.linalg import gram
from backend.pruning import redense
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import PackedLinear
from tests.conftest import ALL
from tests.decoding.native.test_decoder import SIZES, built, distance, tokens
from tests.kernels.sets import NAMES, VARIANTS, in_hardware, kernel_set, tiles_in_use

INPUTS, OUTPUTS = 192, 80
ROWS = (1, 2, 3, 5, 8, 13, 37)


@pytest.fixture(params=NAMES if ALL else VARIANTS)
def instructions(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    found = kernel_set(request.param)
    yield found
    if request.param == "amx" and not in_hardware("amx"):
        assert not tiles_in_use(found)  # they would slow down whatever this thread does next


def test_the_best_set_of_this_processor_is_used(record_property) -> None:
    """The report of the tests tells which sets have run in hardware, and which were emulated."""
    ran = {name: "hardware" if in_hardware(name) else "emulated" for name in NAMES}
    record_property("instruction sets", str(ran))
    print(ran, described(kernels().name))
    assert kernels().name == next(name for name in NAMES if ran[name] == "hardware")
    assert ran[kernels().name] == "hardware"


def in_8_bits(x: Tensor, group: int) -> Tensor:
    """The inputs as the decoder rounds them: 127 levels of the largest of each group."""
    groups = x.view(len(x), -1, group)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scale).round() * scale).view_as(x)


def check(linear: NativeLinear, weight: Tensor, group: int) -> None:
    for rows in ROWS:
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
def test_codes(instructions: Kernels, bits: int, group: int, grid_type: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    weight[1:3, :group] = torch.tensor([[9.0], [-9.0]])  # codes of one sign
    grid = minmax_grid(weight.view(OUTPUTS, -1, group), bits, grid_type)
    layer = QuantizedWeight(grid, grid.codes(weight).byte())
    native = NativeLinear(PackedLinear(layer), instructions)
    assert native._matrix.format == bits
    assert native._layout.size == OUTPUTS * INPUTS * bits // 8 + weight.numel() // group * 2 * (
        1 if grid_type == "symmetric" else 2
    )
    scale, zero = (x.repeat_interleave(group, 1) for x in (grid.scale, grid.zero - 2 ** (bits - 1)))
    levels = layer.codes.float() - 2 ** (bits - 1) - zero.bfloat16().float()
    check(native, scale.bfloat16().float() * levels, group)


def test_codes_of_8_bits(instructions: Kernels) -> None:
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    weight[1:3] = torch.tensor([[9.0], [-9.0]])
    groups = weight.view(OUTPUTS, -1, HEAD_GROUP)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    rounded = (groups / scale).round().clamp(-128, 127) * scale
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = weight
    check(NativeLinear(linear, instructions, rounded=True), rounded.view_as(weight), HEAD_GROUP)


@pytest.mark.parametrize("inputs", [192, 80])  # 80: the last inputs do not fill a tile
def test_weights_of_16_bits(instructions: Kernels, inputs: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, 75, dtype=torch.bfloat16)  # nor do the outputs fill a register
    native = NativeLinear(linear, instructions)
    assert native(torch.randn(3, 7, inputs)).shape == (3, 7, 75)
    for rows in ROWS:
        x = torch.randn(rows, inputs)
        entering = x.bfloat16().float() if instructions.bfloat16 else x
        y, exact = native(x), linear.double()(entering.double())
        size = entering.abs().double() @ linear.weight.abs().T
        assert ((y - exact).abs() <= 1e-6 * (size + 1)).all()
        assert torch.equal(y, torch.cat([native(row) for row in x.split(1)]))


def test_zeros_that_are_left_out_change_no_bit(instructions: Kernels) -> None:
    """Rows with anything between no and all weights, and rows of two in four."""
    torch.manual_seed(0)
    linear = nn.Linear(INPUTS, OUTPUTS, dtype=torch.bfloat16)
    linear.weight.data *= torch.rand(OUTPUTS, INPUTS) < torch.rand(OUTPUTS, 1) ** 2
    linear.weight.data[: OUTPUTS // 2, 1::2] = 0
    linear.weight.data[3, 7] = -0.0
    sparse, dense = (NativeLinear(linear, instructions, sparse=x) for x in (True, False))
    assert sparse.sparse == bool(instructions.bfloat16) and not dense.sparse
    for rows in ROWS:
        x = torch.randn(rows, INPUTS)
        assert torch.equal(sparse(x), dense(x))


@pytest.fixture
def everywhere(instructions: Kernels, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Other callers use these kernels, too."""
    for module in (gram, redense, rounding):
        monkeypatch.setattr(module, "kernels", lambda: instructions)
        monkeypatch.setattr(module, "kernels_or_none", lambda: instructions)
    return instructions


@pytest.mark.parametrize(("tokens", "inputs"), [(1, 1), (7, 50), (65, 96), (1100, 70)])
def test_gram_matrices(everywhere: Kernels, tokens: int, inputs: int) -> None:
    torch.manual_seed(0)
    x, H = torch.randn(tokens, inputs).bfloat16(), torch.zeros(inputs, inputs)
    assert gram.is_supported(x) == bool(everywhere.bfloat16)
    if not gram.is_supported(x):
        return
    gram.add_gram(H, x)
    exact = x.double().T @ x.double()
    torch.testing.assert_close(H.triu().double(), exact.triu(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", redense.KINDS)
def test_descents(everywhere: Kernels, kind: int) -> None:
    """A step ends at the dense weights, or at those of them that are kept."""
    torch.manual_seed(0)
    dense = torch.randint(-2, 3, (70, 64)).float()
    start = 64.0 * (torch.rand(70, 64) < 0.5)
    inputs = redense.InputStatistics(64, torch.ones(64), torch.eye(64), torch.bfloat16)
    inputs.__dict__["largest_eigenvalue"] = 1.0
    assert redense.is_supported(inputs, kind) == bool(everywhere.bfloat16)
    if not everywhere.bfloat16:
        return
    W, errors = redense.descend(start, dense, inputs, 1, kind, 0 if kind == 0 else 1)
    if kind == redense.SHRINK:
        assert torch.equal(W, dense)
    else:
        assert torch.equal(errors[0], (start - dense).square().sum(1))
        assert ((dense == W) | (W == 0)).all()


def test_rounding_of_layers_in_training(everywhere: Kernels) -> None:
    torch.manual_seed(0)
    W, A, B = torch.randn(5, 40), torch.randn(3, 40), torch.randn(5, 3)
    scale, zero, m = 0.3 * torch.ones(5, 2), torch.full((5, 2), 3.0), torch.ones(5, 2)
    rows = rounding.RoundedRows(W, None, A, B, scale, zero, m, 7, 0.5)
    level, _ = rows.levels()
    exact = ((W + 0.5 * B @ A) / 0.3).round().clamp(-3, 4).view(5, 2, 20)
    assert ((level - exact).abs() > 0).float().mean() < 0.02  # ties
    out = torch.empty(5, 40)
    rows.values(out)
    assert torch.equal(out, (0.3 * level).view(5, 40))


def test_gates_far_below_zero_are_closed(instructions: Kernels) -> None:
    model = built(LlamaConfig(**SIZES))
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data *= 100
    native, ids = NativeModel(model, instructions), tokens(model, 12)
    logits = native.forward(ids, native.new_cache(12), read_out=12)[1]
    assert distance(logits, model.float()(input_ids=ids[None]).logits[0]) < 0.05


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_exported_names_have_one_prefix() -> None:
    listed = ["nm", "--dynamic", "--defined-only", library()._name]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[2] for line in lines if line.split()[1] in "TDRB"]
    assert names and all(name.startswith("slimscope_") for name in names)
