"""Tensors of a layer in each format, refusals that name suitable formats, and model cards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from huggingface_hub import metadata_load
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.errors import ConfigError, ModelError
from backend.export.card import (
    CARD,
    ModelOrigin,
    copy_terms,
    figures,
    front_matter,
    origin_of,
    pruned_card,
)
from backend.export.formats import (
    ExportRequirements,
    Layout,
    check_format,
    vllm_hint,
)
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


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 130), st.integers(0, 10**6))
def test_packed_codes_are_unpacked(bits: int, rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (rows, words_for(columns, bits))
    assert torch.equal(unpack(words, bits, columns), codes)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(unpack_from_int32(words, bits, signed.shape), signed)
    assert torch.equal(pack_to_int32(signed, bits), words)


# formats ------------------------------------------------------------------------------------------


PLAIN = ExportRequirements(4, "symmetric", "float16", False, True, frozenset({(64, 64), (32, 192)}))


@pytest.mark.parametrize(
    ("format", "changed", "said", "others"),
    [
        ("gptq", {"bits": 5}, "2, 3, 4, 8 bits, not 5", "compressed-tensors, slimscope or dense"),
        ("gptq_v2", {"bits": 7}, "not 7", "compressed-tensors, slimscope or dense"),
        (
            "gptq",
            {"grid": "zero-point"},
            "zero-point",
            "compressed-tensors, gptq_v2, slimscope or dense",
        ),
        ("gptq_v2", {"grid": "offset"}, "whole numbers", "slimscope or dense"),
        ("compressed-tensors", {"grid": "offset"}, "whole numbers", "slimscope or dense"),
        ("gptq", {"scale_dtype": "bfloat16"}, "float16", "compressed-tensors, slimscope or dense"),
        (
            "gptq_v2",
            {"all_quantized": False},
            "leave single layers",
            "compressed-tensors, slimscope or dense",
        ),
        (
            "gptq_v2",
            {"shapes": frozenset({(64, 40)})},
            "64 × 40",
            "compressed-tensors, slimscope or dense",
        ),
        ("compressed-tensors", {"in_out": True}, "transposed", "gptq, gptq_v2, slimscope or dense"),
        ("compressed-tensors", {"architecture": "GPTBigCodeForCausalLM"}, "cannot load", "dense"),
    ],
)
def test_unsupported_settings_of_a_format_are_refused(
    format: str, changed: dict, said: str, others: str
) -> None:
    choice = replace(PLAIN, **changed)
    with pytest.raises(ConfigError) as refused:
        check_format(format, choice)
    assert said in refused.value.why and refused.value.field == "format"
    assert refused.value.do == f"Choose {others}."


def test_the_hint_names_what_vllm_cannot_run() -> None:
    names = [f"layers.0.self_attn.{each}_proj" for each in "qkv"]
    assert vllm_hint(4, [*names, "layers.0.self_attn.o_proj"]) == ""
    assert "cannot load 3-bit" in vllm_hint(3, names) and "CPU" in vllm_hint(8, names)
    assert "fuses q_proj, k_proj, v_proj" in vllm_hint(4, names[:2])


BASE = """---
base_model: org/base
license: other
license_name: base-terms
license_link: https://example.org/terms
---
# A model
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (folder := tmp_path / "base").mkdir()
    (folder / CARD).write_text(BASE)
    (folder / "LICENSE.txt").write_text("the terms")
    (folder / "LICENCE").write_text("the same, as others spell it")
    (folder / "NOTICE").write_text("a notice")
    return folder


def test_license_and_terms_are_carried_over(base: Path, tmp_path: Path) -> None:
    origin = origin_of(str(base))
    (new := tmp_path / "new").mkdir()
    measured = {"perplexity": {"Dense": 12.0, "SDS": 15.5}, "zero_share": {"SDS": 0.5}}
    card = pruned_card(
        "Base", "sds-0001", "SDS", "SDS", "2:4", origin, "", measured, {"pattern": "2:4"}, {}
    )
    (new / CARD).write_text(card)
    copy_terms(origin, new)
    assert {file.name for file in new.iterdir()} == {CARD, "LICENSE.txt", "LICENCE", "NOTICE"}
    read = metadata_load(new / CARD)
    assert (read["base_model"], read["license"]) == ("org/base", "other")
    assert read["license_name"] == "base-terms" and "sparse" in read["tags"]
    assert "| SDS | 15.500 | 0.5 |" in card and "| Dense | 12.000 |  |" in card
    assert origin_of(str(new)) == ModelOrigin(
        "org/base", "other", "base-terms", "https://example.org/terms", new
    )


def test_the_default_model_is_named_as_the_hub_names_it(current: object) -> None:
    origin = origin_of("smollm2-135m")
    assert origin.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "license: apache-2.0" in front_matter(origin, [])
    assert figures({"perplexity": {"Dense": 2.0}}).endswith("| Dense | 2.000 |")
