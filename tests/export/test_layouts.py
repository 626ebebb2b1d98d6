"""Tensors of a layer in each format, compared with the decompressor of compressed-tensors and the
arithmetic of GPTQ kernels."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.errors import ModelError
from backend.export.formats import Layout
from backend.export.layouts import pack, unpack, words_for
from backend.export.reading import layer_from
from backend.export.writing import layer_tensors

GPTQ = [("gptq", "symmetric"), ("gptq_v2", "symmetric"), ("gptq_v2", "zero-point")]


def layout(format: str, bits: int, grid_type: str, size: int = 32) -> Layout:
    return Layout(format, bits, size, grid_type)


@pytest.mark.parametrize("grid_type", ["symmetric", "zero-point"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_compressed_tensors_reads_the_same_weights(make_layer, bits: int, grid_type: str) -> None:
    layer = make_layer(rows=40, bits=bits, grid_type=grid_type)
    held = layer_tensors(layer, layout("compressed-tensors", bits, grid_type), torch.float16)
    shape = torch.Size(held["weight_shape"].tolist())
    values = unpack_from_int32(held["weight_packed"], bits, shape).float()
    zero = torch.zeros(40, 2)
    if grid_type != "symmetric":
        zero = unpack_from_int32(held["weight_zero_point"], bits, zero.shape, packed_dim=0).float()
    scale = held["weight_scale"].float()
    W = (values.view(40, 2, 32) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    assert torch.equal(W.view(40, 64), layer.dense())


def by_gptq_arithmetic(held: dict[str, Tensor], bits: int, shift: int) -> Tensor:
    """Return W [out, in] as the reference kernels compute it, one code at a time."""
    columns, rows = len(held["g_idx"]), held["scales"].shape[1]

    def code(words: Tensor, place: int) -> int:
        stream = 0
        for n, word in enumerate(words.tolist()):
            stream |= (word & 0xFFFFFFFF) << (32 * n)
        return stream >> (place * bits) & (2**bits - 1)

    W = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            group = int(held["g_idx"][j])
            q = code(held["qweight"][:, i], j)
            z = code(held["qzeros"][group], i) + shift
            W[i, j] = held["scales"][group, i].float() * (q - z)
    return W


@pytest.mark.parametrize(("format", "grid_type"), GPTQ)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_kernels_read_the_weights(make_layer, format: str, grid_type: str, bits: int) -> None:
    layer = make_layer(rows=32, bits=bits, grid_type=grid_type)
    held = layer_tensors(layer, layout(format, bits, grid_type), torch.float16)
    assert held["qweight"].shape == (64 * bits // 32, 32)
    assert held["qzeros"].shape == (2, bits) and held["scales"].shape == (2, 32)
    assert torch.equal(by_gptq_arithmetic(held, bits, int(format == "gptq")), layer.dense())


def awq_words(codes: Tensor) -> Tensor:
    """Return int32 [rows, columns / 8] as AutoAWQ packs 4-bit codes."""
    words = torch.zeros(len(codes), codes.shape[1] // 8, dtype=torch.long)
    for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        words |= codes[:, column::8].long() << (4 * place)
    return (words - (words >= 2**31).long() * 2**32).int()


def test_awq_is_read(make_layer) -> None:
    layer = make_layer(rows=32, grid_type="zero-point")
    held = {
        "qweight": awq_words(layer.codes.T),
        "qzeros": awq_words(layer.grid.zero.T.byte()),
        "scales": layer.grid.scale.T.half(),
    }
    again = layer_from("x", held, Layout("awq", 4, 32, "zero-point"))
    assert again.group_size == 32 and torch.equal(again.dense(), layer.dense())


@pytest.mark.parametrize("format", ["gptq", "compressed-tensors"])
def test_inputs_in_another_order_are_read(make_layer, format: str) -> None:
    """Activation order: input j belongs to group g_idx[j], not to its neighbors' group."""
    layer, order = make_layer(rows=32), torch.randperm(64, generator=torch.manual_seed(0)) % 2
    created = layout(format, 4, "symmetric")
    held = layer_tensors(layer, created, torch.float16)
    held["g_idx" if format == "gptq" else "weight_g_idx"] = order.int()
    expected = layer.grid.scale[:, order] * (layer.codes.float() - layer.grid.zero[:, order])
    assert torch.equal(layer_from("x", held, created).dense(), expected)
    if format == "gptq":
        assert torch.equal(by_gptq_arithmetic(held, 4, 1), expected)
    held["g_idx" if format == "gptq" else "weight_g_idx"][3] = 2
    with pytest.raises(ModelError, match="belong to groups 0 to 2"):
        layer_from("x", held, created)


@pytest.mark.parametrize(
    ("format", "grid_type"),
    [
        *GPTQ,
        ("compressed-tensors", "symmetric"),
        ("compressed-tensors", "zero-point"),
        ("slimscope", "offset"),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_layer_is_read_again(make_layer, format: str, grid_type: str, bits: int) -> None:
    for size, groups in ((32, 2), (0, 1)):
        layer = make_layer(bits=bits, grid_type=grid_type, groups=groups)
        created = layout(format, bits, grid_type, size)
        again = layer_from("x", layer_tensors(layer, created, torch.float16), created)
        assert torch.equal(again.codes, layer.codes)
        assert torch.equal(again.dense(), layer.dense())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.pop("weight_scale"), "no weight_scale"),
        (lambda t: t.update(weight_packed=t["weight_packed"][:, 1:]), "weight_packed is"),
        (lambda t: t.update(weight_shape=torch.tensor([32, 32])), "weight_packed is"),
        (lambda t: t.update(weight_scale=t["weight_scale"][:, :1]), "do not match groups of 32"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(make_layer, spoil, said: str) -> None:
    created = layout("compressed-tensors", 4, "symmetric")
    held = layer_tensors(make_layer(), created, torch.float16)
    spoil(held)
    with pytest.raises(ModelError, match=said):
        layer_from("model.x", held, created)


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_packed_codes_are_unpacked(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, words_for(columns, bits))
    assert torch.equal(unpack(words, bits, columns), codes)


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_another_library_reads_the_same(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(unpack_from_int32(pack(codes, bits), bits, signed.shape), signed)
    assert torch.equal(pack_to_int32(signed, bits), pack(codes, bits))
