"""GGUF files: read by the reader of the `gguf` package, and loaded again as models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import Qwen2Tokenizer

from backend.errors import ConfigError
from backend.export.formats import Layout, read_layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.export.gguf.types import choose_type
from backend.export.gguf.writing import write_gguf
from backend.export.reading import read_layers
from backend.export.writing import export
from backend.models.loading import LoadedModel, load
from backend.models.saving import save
from backend.quantization.grid import offsets_of
from backend.reporter import SilentReporter
from backend.settings import settings

QUIET = SilentReporter()


@pytest.fixture
def file(current, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where our own loader may read a GGUF file."""
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    (current.root / "models").mkdir(parents=True)
    return current.root / "models" / "toy.gguf"


@pytest.fixture
def saved(toy: LoadedModel, tmp_path: Path) -> Path:
    save(toy.model, toy.tokenizer, tmp_path / "saved", "# card")
    return tmp_path / "saved"


@pytest.fixture
def packed(toy: LoadedModel, quantized: Callable, tmp_path: Path) -> Callable[..., Path]:
    """A folder with packed codes; the toy holds the same weights."""

    def make(bits: int, size: int, grid_type: str) -> Path:
        layers = quantized(bits, size, grid_type)
        (folder := tmp_path / "packed").mkdir()
        format = "slimscope" if grid_type == "offset" else "compressed-tensors"
        layout = Layout(format, bits, size, grid_type)
        export(toy.model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
        return folder

    return make


def largest_difference(file: Path, toy: LoadedModel) -> float:
    """Between the weights of our own loader and those of the model, relative to the largest."""
    again = load(str(file)).model
    pairs = zip(again.named_parameters(), toy.model.named_parameters(), strict=True)
    differences = [
        ((mine - theirs).abs().max() / theirs.abs().max()).item()
        for (name, mine), (own, theirs) in pairs
        if name == own
    ]
    assert len(differences) == len(list(toy.model.parameters()))
    return max(differences)


@pytest.mark.parametrize(
    ("type", "within"),
    [("F32", 0), ("F16", 0), ("BF16", 2**-8), ("Q8_0", 2**-7), ("Q4_0", 0.13), ("Q4_1", 0.13)],
)
def test_a_plain_model_comes_back(
    toy: LoadedModel, saved: Path, file: Path, type: str, within: float
) -> None:
    write_gguf(saved, file, type, False, "Toy", QUIET)
    assert largest_difference(file, toy) <= within
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.ffn_up.weight"] == Kind[type]
    assert kinds["output_norm.weight"] == Kind.F32
    embedding = "Q8_0" if type.startswith("Q4") else type
    assert kinds["token_embd.weight"] == Kind[embedding] and "output.weight" not in kinds
    write_gguf(saved, file.with_name("b.gguf"), type, False, "Toy", QUIET, "Q4_0")
    smaller = {t.name: t.tensor_type for t in gguf.GGUFReader(file.with_name("b.gguf")).tensors}
    assert smaller == kinds | {"token_embd.weight": Kind.Q4_0}
    text = "One day, Tom didn't find 12 balls.\n\n"
    assert load(str(file)).tokenizer.encode(text) == toy.tokenizer.encode(text)


@pytest.mark.parametrize(
    ("bits", "size", "grid_type", "type"),
    [(4, 32, "symmetric", "Q4_0"), (3, 64, "symmetric", "Q4_0"), (2, 0, "symmetric", "Q4_0"),
     (4, 32, "symmetric", "Q8_0"), (8, 32, "symmetric", "Q8_0"), (5, 64, "zero-point", "Q8_0"),
     (4, 32, "symmetric", "F32"), (4, 32, "offset", "F32")],
)  # fmt: skip
def test_codes_are_carried_over_exactly(
    toy: LoadedModel, packed: Callable, file: Path, bits: int, size: int, grid_type: str, type: str
) -> None:
    folder = packed(bits, size, grid_type)
    layout = Layout("compressed-tensors", bits, size, grid_type)
    assert choose_type(type, layout, "float16") == type
    write_gguf(folder, file, type, True, "Toy", QUIET)
    assert largest_difference(file, toy) == 0
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_q.weight"] == Kind[type] and kinds["token_embd.weight"] == Kind.F16


def test_of_a_grid_with_zero_points_only_the_minimum_is_rounded(
    toy: LoadedModel, packed: Callable, file: Path
) -> None:
    write_gguf(packed(4, 32, "zero-point"), file, "Q4_1", True, "Toy", QUIET)
    assert 0 < largest_difference(file, toy) < 2**-10
    tensor = next(t for t in gguf.GGUFReader(file).tensors if "ffn_up" in t.name)
    codes = tensor.data.reshape(-1, 20)[:, 4:]
    assert len(np.unique(codes & 15)) == 16  # as they were, not moved by the rounding


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (3, 64)])
def test_of_a_grid_with_offsets_nothing_is_rounded(
    toy: LoadedModel, packed: Callable, file: Path, bits: int, size: int
) -> None:
    folder = packed(bits, size, "offset")
    assert choose_type("auto", read_layout(folder), "float16") == "Q4_1"
    write_gguf(folder, file, "Q4_1", True, "Toy", QUIET)
    assert largest_difference(file, toy) < 1e-6  # d q + m and s (q - z), both in float32
    layers, _ = read_layers(folder)
    layer = layers["model.layers.1.mlp.up_proj"]
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_up.weight")
    m = tensor.data.reshape(len(layer.codes), -1, 20)[..., 2:4].copy().view(np.float16)[..., 0]
    offset = offsets_of(layer.grid.scale, layer.grid.zero).half()
    assert np.array_equal(m, offset.repeat_interleave(size // 32, 1).numpy())


@pytest.mark.parametrize(
    ("type", "layout", "why"),
    [
        ("Q8_0", (4, 32, "offset"), "no offsets"),
        ("Q4_0", (4, 32, "zero-point"), "grid is symmetric"),
        ("Q4_1", (5, 32, "symmetric"), "holds 4 bits, not 5"),
        ("Q8_0", (8, 32, "zero-point"), "need 9 bits"),
        ("F16", (4, 32, "symmetric"), "once more"),
        ("auto", (4, 16, "symmetric"), "blocks of 32"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(type: str, layout: tuple, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        choose_type(type, Layout("gptq_v2", *layout), "float16")


def test_auto_is_the_smallest_that_holds_the_codes() -> None:
    found = [
        choose_type("auto", Layout("compressed-tensors", bits, 64, grid_type), "float16")
        for bits, grid_type in ((4, "symmetric"), (3, "zero-point"), (6, "zero-point"))
    ]
    assert found == ["Q4_0", "Q4_1", "Q8_0"]
    assert [choose_type("auto", None, d) for d in ("bfloat16", "float32")] == ["BF16", "F16"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gpt2"}, "architecture is gpt2"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary positions"),
    ],
)
def test_another_model_is_refused(toy: LoadedModel, change: dict, why: str) -> None:
    assert architecture_of(toy.model.config.to_dict()).rope_base == 10000.0
    with pytest.raises(ConfigError, match=why):
        architecture_of(toy.model.config.to_dict() | change)


def test_a_weight_beyond_float16_is_refused(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="65504"):
        write_gguf(saved, tmp_path / "it.gguf", "F16", False, "Toy", QUIET)


def test_a_tokenizer_that_splits_otherwise_is_refused(saved: Path) -> None:
    path = saved / "tokenizer.json"
    stored = json.loads(path.read_text())
    assert vocabulary_of(saved, 514).tokens[-1] == "[PAD513]"
    path.write_text(json.dumps(stored | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(ConfigError, match="Whitespace"):
        vocabulary_of(saved, 512)


def test_the_splitting_of_qwen_is_known(tmp_path: Path) -> None:
    Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path)
    assert vocabulary_of(tmp_path, 2).pre == "qwen2"


def test_scores_keep_the_order_of_merges(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.ByteFallback()
    special = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat, the dog on the log"] * 9, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    found = vocabulary_of(tmp_path, made.get_vocab_size())
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert [scores["".join(pair)] for pair in merges] == [-n for n in range(len(merges))]
    assert (found.model, found.space) == ("llama", True)
    assert found.types[0] == gguf.TokenType.UNKNOWN
