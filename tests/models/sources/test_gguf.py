import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from backend.errors import ModelError
from backend.export.card import origin_of
from backend.models.loading import load
from backend.models.sources.catalog import inspect, materialize
from backend.models.sources.headers import read_headers
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import settings

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rotary rows of q and k [out, in] as llama.cpp does."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_toy(path: Path, kind: Kind = Kind.F32, about: str = "", **fields: int) -> Path:
    """Write the toy model as a GGUF file, with linears in `kind` and all other tensors in float32.
    `about`: its description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(192)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, value in fields.items():
        writer.add_uint32(f"llama.{name}", value)
    if about:
        writer.add_description(about)
        writer.add_license("apache-2.0")
        writer.add_base_model_count(1)
        writer.add_base_model_repo_url(0, "https://huggingface.co/org/toy")
    add_tokenizer(writer)
    for name, parameter in load("toy").model.named_parameters():
        add_tensor(writer, name, parameter.detach().numpy(), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    bpe = json.loads((TOY_FOLDER / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([3] + [1] * 511)
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def add_tensor(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: Kind) -> None:
    if name == "model.embed_tokens.weight":
        return writer.add_tensor("token_embd.weight", weight)
    if name == "model.norm.weight":
        return writer.add_tensor("output_norm.weight", weight)
    block, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    if module in ("self_attn.q_proj", "self_attn.k_proj"):
        weight = interleaved(weight, 2 if "q_proj" in module else 1)
    target = f"blk.{block}.{NAMES[module]}.weight"
    if weight.ndim == 1 or kind == Kind.F32:
        return writer.add_tensor(target, weight)
    return writer.add_tensor(target, gguf.quants.quantize(weight, kind), raw_dtype=kind)


@pytest.fixture
def file(current, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    return current.root / "models" / "toy.gguf"


def test_a_float_file_gives_the_same_model(file):
    write_toy(file)
    converted, original = load(str(file)), load("toy")
    assert converted.facts.note == ""
    for (name, mine), (own, theirs) in zip(
        converted.model.named_parameters(), original.model.named_parameters(), strict=True
    ):
        assert name == own
        assert torch.equal(mine, theirs), name
    text = "Once upon a time, there was a little girl."
    assert converted.tokenizer.encode(text) == original.tokenizer.encode(text)


def test_what_lies_beside_a_file_is_not_read(file):
    write_toy(file)
    secret = file.parents[2] / "secret.jinja"
    secret.write_text("secret")
    templates = file.parent / "additional_chat_templates"
    templates.mkdir()
    (templates / "default.jinja").symlink_to(secret)
    assert load(str(file)).tokenizer.chat_template is None


def test_header_and_converted_folder_tell_the_same(file):
    write_toy(file, Kind.Q8_0)
    before = inspect(str(file))
    materialize(str(file))
    after = inspect(str(file))
    assert (
        before.note
        == after.note
        == (
            "dequantized from Q8_0: 82 % of its weights are already rounded, most to an 8-bit grid "
            "(Q8_0 21 tensors, F32 8)."
        )
    )
    assert before.linears == after.linears and before.bytes == after.bytes == file.stat().st_size
    for attribute in ("parameters", "blocks", "hidden", "vocabulary", "context", "architecture"):
        assert getattr(before, attribute) == getattr(after, attribute)


def test_a_file_is_converted_once_and_again_when_it_changes(file):
    lines: list[str] = []
    folder = materialize(str(write_toy(file)), lines.append)
    assert materialize(str(file), lines.append) == folder
    assert lines[0] == "converting toy.gguf to safetensors, once"
    assert "dequantized 15 of 29 tensors" in lines and lines[-1].startswith("writing ")
    assert materialize(str(write_toy(file, Kind.Q8_0))) != folder


def test_experts_and_unknown_architectures_are_refused(file):
    write_toy(file, expert_count=8)
    with pytest.raises(ModelError, match="mixture of experts"):
        inspect(str(file))
    writer = gguf.GGUFWriter(file, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture is mamba"):
        inspect(str(file))


@pytest.mark.parametrize("content", [b"", b"not a gguf file at all", b"GGUF" + b"\xff" * 64])
def test_a_damaged_file_is_refused(file, content):
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        inspect(str(file))


def test_origin_and_license_are_those_of_the_file(file):
    write_toy(file, Kind.Q8_0, about="Made of an awq model.")
    materialize(str(file))
    origin = origin_of(str(file))
    assert (origin.base_model, origin.license) == ("org/toy", "apache-2.0")
    assert inspect(str(file)).note.endswith("Its name or metadata mention AWQ.")


@pytest.mark.parametrize(
    ("kind", "dtypes"), [(Kind.F16, {"F16", "BF16"}), (Kind.Q8_0, {"F32", "F16", "BF16"})]
)
def test_each_tensor_keeps_the_narrowest_type_that_holds_its_values(file, kind, dtypes):
    write_toy(file, kind)
    folder = materialize(str(file))
    found = {header.dtype for header in read_headers(folder).values()}
    assert found <= dtypes and inspect(str(file)).dtype == (
        "float16" if kind == Kind.F16 else "float32"
    )
    weight = dict(load(str(file)).model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    own = dict(load("toy").model.named_parameters())["model.layers.0.mlp.up_proj.weight"].detach()
    expected = gguf.quants.dequantize(gguf.quants.quantize(own.numpy(), kind), kind)
    assert np.array_equal(weight.detach().numpy(), expected)
