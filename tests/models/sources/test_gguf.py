"""GGUF files as models; headers, whose strings are counted without decoding them and read once."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from backend.errors import ModelError
from backend.export.card import origin_of
from backend.models.loading import load
from backend.models.sources import gguf as source
from backend.models.sources.catalog import inspect, materialize
from backend.models.sources.gguf_header import HeaderReader, read_header
from backend.models.sources.headers import read_headers
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings, settings

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
def file(current: Settings, own_cache: Path) -> Path:
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


# gguf header --------------------------------------------------------------------------------------


VOCABULARY = 262_144  # as of Gemma 3
READS = 2_000  # of numbers and arrays: more than fields and tensors need, less than strings would


def write_large(path: Path, tokens: int, order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    """Write a model of one block with this number of tokens, merges, scores and types."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(4)
    writer.add_head_count(1)
    writer.add_token_list([f"token-{number}" for number in range(tokens)])
    writer.add_token_merges([f"to ken-{number}" for number in range(tokens)])
    writer.add_token_scores([0.5] * tokens)
    writer.add_token_types([1] * tokens)
    writer.add_description("behind them")
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, 4), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_large_vocabulary_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as embeddings are accepted, more are rejected, and no string is decoded."""
    reads: list[int] = []
    get = HeaderReader._get

    def counted(self: HeaderReader, offset: int, *rest: Any, **named: Any) -> Any:
        reads.append(offset)
        return get(self, offset, *rest, **named)

    monkeypatch.setattr(HeaderReader, "_get", counted)
    header = read_header(write_large(tmp_path / "large.gguf", VOCABULARY))
    assert header["config"]["vocab_size"] == VOCABULARY
    assert header["about"]["description"] == "behind them"
    assert len(reads) < READS
    for wrong in (VOCABULARY + 1, 0):
        with pytest.raises(ModelError) as refused:
            read_header(write_large(tmp_path / "wrong.gguf", wrong))
        assert "no tokenizer" in refused.value.why
    assert len(reads) < 3 * READS


def test_a_file_of_the_other_byte_order_is_read(tmp_path: Path) -> None:
    header = read_header(write_large(tmp_path / "big.gguf", 300, gguf.GGUFEndian.BIG))
    assert header["about"]["description"] == "behind them"


def test_arrays_have_the_values_of_the_file(tmp_path: Path) -> None:
    """The values equal those of the gguf package's reader, element by element."""
    path = write_large(tmp_path / "it.gguf", 300)
    mine, theirs = HeaderReader(path), gguf.GGUFReader(path)
    assert mine.count_strings("tokenizer.ggml.tokens") == len(
        theirs.fields["tokenizer.ggml.tokens"].data
    )
    for name, field in theirs.fields.items():
        if gguf.GGUFValueType.STRING not in field.types[1:]:
            assert mine.fields[name].contents() == field.contents(), name


@pytest.fixture
def read(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers have been read, of which there is one."""
    write_toy(file)
    files: list[Path] = []
    limited = source.read

    def noted(parser: str, path: Path) -> Any:
        files.append(path)
        return limited(parser, path)

    monkeypatch.setattr(source, "read", noted)
    return files


def in_another_process(file: Path) -> Any:
    """The facts as seen by a process with empty caches."""
    source._read_header.cache_clear()
    return inspect(str(file))


def test_a_header_is_read_once_until_the_file_changes(file: Path, read: list[Path]) -> None:
    facts = in_another_process(file)
    assert facts == in_another_process(file) == inspect(str(file)) and len(read) == 1
    write_toy(file, Kind.Q8_0)
    assert in_another_process(file).note and len(read) == 2
    assert in_another_process(file).note and len(read) == 2
    (kept,) = (settings().cache_dir / "read").iterdir()  # of one file, one
    assert kept.suffix == ".json"


@pytest.mark.parametrize("content", ["", "{", "[]", "[1, 2, 3]", '["", {}]', "null", "\0"])
def test_a_damaged_record_is_not_used(file: Path, read: list[Path], content: str) -> None:
    facts = in_another_process(file)
    (kept,) = (settings().cache_dir / "read").iterdir()
    kept.write_text(content)
    assert in_another_process(file) == facts and len(read) == 2
    assert json.loads(kept.read_text())[1]["config"]


def test_the_record_of_another_file_is_not_used(file: Path, read: list[Path]) -> None:
    in_another_process(file)
    (kept,) = (settings().cache_dir / "read").iterdir()
    other = write_toy(file.with_name("other.gguf"), Kind.Q8_0)
    note = in_another_process(other).note
    (of_other,) = {*kept.parent.iterdir()} - {kept}
    of_other.write_text(kept.read_text())
    assert in_another_process(other).note == note and len(read) == 3


def test_a_refused_file_leaves_no_record(file: Path) -> None:
    write_toy(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError):
        in_another_process(file)
    assert not (settings().cache_dir / "read").exists()


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, read: list[Path]) -> None:
    settings().cache_dir.mkdir(parents=True)
    (settings().cache_dir / "read").touch()  # no folder
    assert in_another_process(file) == in_another_process(file) and len(read) == 2
