"""GGUF files: read with the `gguf` package, and loaded again as models."""

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
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Tokenizer,
    Qwen3Config,
)

from backend.errors import ConfigError, ModelError
from backend.export.formats import Layout, read_layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.export.gguf.types import choose_type
from backend.export.gguf.writing import write_gguf
from backend.export.reading import read_layers
from backend.export.writing import export
from backend.models.loading import LoadedModel, load
from backend.models.saving import save
from backend.models.sources.gguf import convert
from backend.models.sources.gguf_header import config_values
from backend.quantization.grid import offsets_of
from backend.reporter import SilentReporter
from backend.settings import Settings
from tests.conftest import ALL

QUIET = SilentReporter()


@pytest.fixture
def file(current: Settings, own_cache: Path) -> Path:
    """Return a path at which our loader may read a GGUF file."""
    (current.root / "models").mkdir(parents=True)
    return current.root / "models" / "toy.gguf"


@pytest.fixture
def saved(toy: LoadedModel, tmp_path: Path) -> Path:
    save(toy.model, toy.tokenizer, tmp_path / "saved", "# card")
    return tmp_path / "saved"


@pytest.fixture
def packed(toy: LoadedModel, quantized: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Return a folder with packed codes; the toy has the same weights."""

    def make(bits: int, size: int, grid_type: str) -> Path:
        layers = quantized(bits, size, grid_type)
        (folder := tmp_path / "packed").mkdir()
        format = "slimscope" if grid_type == "offset" else "compressed-tensors"
        layout = Layout(format, bits, size, grid_type)
        export(toy.model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
        return folder

    return make


def largest_difference(file: Path, toy: LoadedModel) -> float:
    """Return the largest difference between loaded and original weights, relative to the largest
    weight."""
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
    [
        *[("F32", 0), ("BF16", 2**-8), ("Q4_0", 0.13)] * ALL,
        *[("F16", 0), ("Q8_0", 2**-7), ("Q4_1", 0.13)],
    ],
)
def test_a_plain_model_is_restored(
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
    [
        *[(4, 32, "symmetric", type) for type in ("Q4_0", "Q8_0", "F32")] * ALL,
        *[(2, 0, "symmetric", "Q4_0"), (8, 32, "symmetric", "Q8_0")] * ALL,
        *[(3, 64, "symmetric", "Q4_0"), (5, 64, "zero-point", "Q8_0"), (4, 32, "offset", "F32")],
    ],
)
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


def test_only_the_minimum_is_rounded_on_a_grid_with_zero_points(
    toy: LoadedModel, packed: Callable, file: Path
) -> None:
    write_gguf(packed(4, 32, "zero-point"), file, "Q4_1", True, "Toy", QUIET)
    assert 0 < largest_difference(file, toy) < 2**-10
    tensor = next(t for t in gguf.GGUFReader(file).tensors if "ffn_up" in t.name)
    codes = tensor.data.reshape(-1, 20)[:, 4:]
    assert len(np.unique(codes & 15)) == 16  # the original ones, not moved by the rounding


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (3, 64)])
def test_nothing_is_rounded_on_a_grid_with_offsets(
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
def test_unsuitable_types_are_refused(type: str, layout: tuple, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        choose_type(type, Layout("gptq_v2", *layout), "float16")


def test_auto_is_the_smallest_suitable_type() -> None:
    result = [
        choose_type("auto", Layout("compressed-tensors", bits, 64, grid_type), "float16")
        for bits, grid_type in ((4, "symmetric"), (3, "zero-point"), (6, "zero-point"))
    ]
    assert result == ["Q4_0", "Q4_1", "Q8_0"]
    assert [choose_type("auto", None, d) for d in ("bfloat16", "float32")] == ["BF16", "F16"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gpt2"}, "architecture is gpt2"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary positions"),
    ],
)
def test_unsupported_architectures_are_refused(toy: LoadedModel, change: dict, why: str) -> None:
    assert architecture_of(toy.model.config.to_dict()).keys["rope.freq_base"] == 10000.0
    with pytest.raises(ConfigError, match=why):
        architecture_of(toy.model.config.to_dict() | change)


SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 1e4,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 2.0],
    "long_factor": [3.0, 4.0],
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.25,
}
GEMMA = {**SIZES, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24}
GEMMA2 = {
    "gemma2.attention.sliding_window": 24,
    "gemma2.attn_logit_softcapping": 50.0,
    "gemma2.final_logit_softcapping": 30.0,
}
GEMMA3 = {
    "gemma3.attention.sliding_window": 24,
    "gemma3.rope.freq_base": 1e6,
    "gemma3.rope.freq_base_swa": 1e4,
    "gemma3.rope.scaling.type": "linear",
    "gemma3.rope.scaling.factor": 8.0,
}
PHI3 = {
    "phi3.rope.dimension_count": 4,
    "phi3.attention.sliding_window": 0,
    "phi3.rope.scaling.original_context_length": 64,
    "phi3.rope.scaling.attn_factor": np.float32((1 + np.log(4) / np.log(64)) ** 0.5),
}
FAMILIES: dict[str, tuple[PretrainedConfig, dict[str, object]]] = {
    "llama": (LlamaConfig(**SIZES, rope_parameters=LLAMA3), {"llama.rope.dimension_count": 16}),
    "gemma": (GemmaConfig(**SIZES, head_dim=16), {"gemma.attention.key_length": 16}),
    "gemma2": (Gemma2Config(**GEMMA), GEMMA2),
    "gemma3": (
        Gemma3TextConfig(**GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        GEMMA3,
    ),
    "phi3": (Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=64), PHI3),
}


def written(config: PretrainedConfig, saved: Path, file: Path) -> dict[str, torch.Tensor]:
    """Write a random model of this config with the tokenizer of the toy. Return its parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_()
    (saved / "model.safetensors").unlink()
    model.save_pretrained(saved)
    write_gguf(saved, file, "F32", False, "It", QUIET)
    return dict(model.named_parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_keys_and_tensors_that_llama_cpp_reads(
    name: str, saved: Path, tmp_path: Path
) -> None:
    config, keys = FAMILIES[name]
    parameters = written(config, saved, file := tmp_path / "it.gguf")
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.architecture").contents() == name
    assert {key: reader.get_field(key).contents() for key in keys} == keys
    tensors = {t.name: t.data for t in reader.tensors}
    shift = 1.0 if "gemma" in name else 0.0
    own = parameters["model.layers.1.post_attention_layernorm.weight"]
    between = "post_attention_norm" if name in ("gemma2", "gemma3") else "ffn_norm"
    assert np.array_equal(tensors[f"blk.1.{between}.weight"], own + shift)
    up = "gate_up_proj" if name == "phi3" else "up_proj"
    result = tensors["blk.0.ffn_up.weight"]
    assert np.array_equal(result, parameters[f"model.layers.0.mlp.{up}.weight"])
    assert ("blk.0.post_ffw_norm.weight" in tensors) == (between == "post_attention_norm")
    if name == "phi3":
        assert tensors["rope_factors_short.weight"].tolist() == [1.0, 2.0]
        assert tensors["rope_factors_long.weight"].tolist() == [3.0, 4.0]


ROUND_TRIPS: dict[str, PretrainedConfig] = {
    **{name: config for name, (config, _) in FAMILIES.items() if name != "gemma"},
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "linear": LlamaConfig(
        **SIZES,
        head_dim=32,
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_file_of_a_family_computes_as_its_source(name: str, saved: Path, file: Path) -> None:
    config = ROUND_TRIPS[name]
    parameters = written(config, saved, file)
    convert(file, folder := file.parent / "converted")
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = AutoModelForCausalLM.from_config(config)
    own.load_state_dict(parameters, strict=False)
    own.tie_weights()
    ids = torch.randint(512, (1, 100))  # longer than windows and original contexts
    with torch.no_grad():
        assert torch.equal(again(ids).logits, own(ids).logits)


@pytest.mark.parametrize("factors", [[1, 1, 3, 1, 2, 8, 8, 8], [1, float("nan")], [1]])
def test_unknown_factors_of_frequencies_are_refused(factors: list[float]) -> None:
    values = {"attention.head_count": 2, "embedding_length": 32}
    tensors = {"rope_freqs": np.array(factors, np.float32)}
    with pytest.raises(ModelError, match="scaling of its rotary frequencies"):
        config_values("llama", values, tensors)
    with pytest.raises(ModelError, match="unsupported scaling su"):
        config_values("llama", values | {"rope.scaling.type": "su"}, {})


def test_the_factors_of_llama_3_are_those_of_transformers(saved: Path, tmp_path: Path) -> None:
    config = FAMILIES["llama"][0]
    written(config, saved, file := tmp_path / "it.gguf")
    (factors,) = (t.data for t in gguf.GGUFReader(file).tensors if t.name == "rope_freqs.weight")
    plain = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    scaled = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    assert len({*factors.tolist()}) > 3 and {1.0, 8.0} < {*factors.tolist()}
    torch.testing.assert_close(torch.from_numpy(factors.copy()), plain / scaled)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "every 2 layers"),
        ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}, "every 6 layers"),
        ("gemma3", {"query_pre_attn_scalar": 168}, "root of 16"),
        ("gemma2", {"attn_logit_softcapping": None}, "no attn_logit_softcapping"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "Gemma 3 does not"),
        ("gemma2", {"hidden_activation": "silu"}, "activation is silu"),
        ("gemma", {"tie_word_embeddings": False}, "head is not its embedding"),
        ("gemma", {"attention_bias": True}, "biases"),
        ("phi3", {"sliding_window": 64}, "sliding window"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("llama", {"rope_parameters": LONG}, "longrope"),
    ],
)
def test_models_that_llama_cpp_computes_differently_are_refused(
    name: str, change: dict, why: str
) -> None:
    config = FAMILIES[name][0].to_dict()
    assert architecture_of(config).name == name
    with pytest.raises(ConfigError, match=why):
        architecture_of(config | change)


def test_a_weight_beyond_float16_is_refused(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="65504"):
        write_gguf(saved, tmp_path / "it.gguf", "F16", False, "Toy", QUIET)


def test_an_unsupported_tokenizer_is_refused(saved: Path) -> None:
    path = saved / "tokenizer.json"
    stored = json.loads(path.read_text())
    assert vocabulary_of(saved, 514).tokens[-1] == "[PAD513]"
    path.write_text(json.dumps(stored | {"pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(ConfigError, match="Whitespace"):
        vocabulary_of(saved, 512)


def test_gemma_splits_at_no_space(tmp_path: Path) -> None:
    space = {"String": " "}
    step = {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False}
    replaced = {"type": "Replace", "pattern": space, "content": "▁"}
    bpe = {"type": "BPE", "byte_fallback": True, "vocab": {"a": 0}, "merges": []}
    stored = {"model": bpe, "normalizer": replaced, "pre_tokenizer": step}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert vocabulary_of(tmp_path, 1).space is False
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored | {"normalizer": None}))
    with pytest.raises(ConfigError, match="Split"):
        vocabulary_of(tmp_path, 1)


def test_scores_keep_the_order_of_merges(tmp_path: Path) -> None:
    created = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    created.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    created.decoder = decoders.ByteFallback()
    special = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    created.train_from_iterator(["the cat sat on the mat, the dog on the log"] * 9, trainer)
    created.save(str(tmp_path / "tokenizer.json"))
    result = vocabulary_of(tmp_path, created.get_vocab_size())
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    scores = dict(zip(result.tokens, result.scores, strict=True))
    assert [scores["".join(pair)] for pair in merges] == [-n for n in range(len(merges))]
    assert (result.model, result.space) == ("llama", True)
    assert result.types[0] == gguf.TokenType.UNKNOWN


def test_the_split_rules_of_qwen_are_supported(tmp_path: Path) -> None:
    Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path)
    assert vocabulary_of(tmp_path, 2).pre == "qwen2"
