"""Model folders that are damaged or lie: every reader refuses them, and says why."""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.errors import SlimscopeError
from backend.export.formats import Layout, read_layout
from backend.export.reading import load_dequantized, load_packed, read_layers
from backend.models.loading import load, weights_hash
from backend.models.sources.catalog import inspect, require_loadable
from backend.models.sources.quantized import PackedGroup
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings
from tests.export.test_mixtures import as_gguf, mixture
from tests.models.sources.test_quantized import pack, packed_toy

Change = Callable[[Path], object]
EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm.weight"
UP, SCALE = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj.weight_scale"
LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
READERS: dict[str, Callable[[Path], object]] = {
    "inspect": lambda folder: inspect(str(folder)),
    "tokenizer": lambda folder: require_loadable(str(folder), 512),
    "load": lambda folder: load(str(folder)),
    "streamed": lambda folder: weights_hash(load(str(folder), streamed=True).model),
    "layout": read_layout,
    "layers": read_layers,
    "dequantized": lambda folder: load_dequantized(folder, torch.float32),
    "packed": load_packed,
    "gguf": as_gguf,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are intact: plain, packed, with a packed embedding, and of experts."""
    folder, toy = tmp_path_factory.mktemp("sources"), load("toy")
    shutil.copytree(TOY_FOLDER, folder / "toy")
    packed_toy(folder / "packed", Layout("compressed-tensors", 4, 32, "symmetric"))
    others = (PackedGroup((EMBEDDING,), 8, 32),)
    packed_toy(folder / "embedding", Layout("slimscope", 4, 32, "symmetric", others))
    experts = Layout("compressed-tensors", 4, 16, "symmetric")
    pack(folder / "mixture", mixture("qwen3_moe"), toy.tokenizer, experts)
    for manifest in folder.glob("*/manifest.json"):
        manifest.unlink()  # which would tell of any change
    return folder


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def edited(name: str, *place: str | int, **changes: Any) -> Change:
    """Other values at a place of a JSON file."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        node = tree
        for part in place:
            node = node[part]
        node |= changes
        (folder / name).write_text(json.dumps(tree))

    return change


def config(**changes: Any) -> Change:
    return edited("config.json", **changes)


def weights(**changes: Any) -> Change:
    place = ("quantization_config", "config_groups", "group_0", "weights")
    return edited("config.json", *place, **changes)


def group(**changes: Any) -> Change:
    return edited("config.json", "quantization_config", "groups", 0, **changes)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return tensors(lambda held: held.update({name: change(held.pop(name)).contiguous()}))


def without(part: str) -> Change:
    return tensors(lambda held: [held.pop(name) for name in [*held] if part in name])


def filled(name: str, value: float) -> Change:
    return tensor(name, lambda values: values.index_fill(0, torch.tensor(1), value))


def indexed(name: object) -> Change:
    """An index that names this file, which exists in another folder and here."""

    def change(folder: Path) -> None:
        shutil.copytree(folder, folder.parent / "other")
        (folder / "passwd").write_bytes((folder / "model.safetensors").read_bytes())
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        index = {"weight_map": {NORM: name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def linked(name: str) -> Change:
    def change(folder: Path) -> None:
        shutil.copytree(folder, folder.parent / "other")
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "other" / name)

    return change


def as_index(content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_bytes(content)

    return change


def as_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def with_adapter(folder: Path) -> None:
    get_peft_model(load("toy").model, LORA).save_pretrained(folder)


def with_token(folder: Path, token: str = "<new>", special: bool = False) -> None:
    """A token behind the vocabulary."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["added_tokens"].append({"id": 512, "content": token, "special": special, **flags})
    path.write_text(json.dumps(tree))


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def without_layout(folder: Path) -> None:
    shutil.copy(TOY_FOLDER / "config.json", folder)


def with_own_head(held: dict[str, Tensor]) -> None:
    parts = {name: held[name].clone() for name in held if name.startswith(f"{EMBEDDING}.")}
    held |= {name.replace(EMBEDDING, HEAD): values for name, values in parts.items()}


def renamed(held: dict[str, Tensor]) -> None:
    held["layers." * 10_000 + "x"] = held.pop(NORM)


CLASSIFIER = "LlamaForSequenceClassification"
NESTED, LONG = b"[" * 500_000, b'{"a":"' + b"x" * 2**23 + b'"}'
LARGE_HEADER = b'{"__metadata__":{"a":"' + b"x" * 2**23 + b'"}}'
Case = tuple[str, Change, str]  # readers, change, part of the reason
TOY: dict[str, Case] = {
    **{
        f"weights {content[:9]!r}": ("inspect", written("model.safetensors", content), "damaged")
        for content in (b"", b"no header", struct.pack("<Q", 2**60) + b"{}")
    },
    **{
        f"config {content!r}": ("inspect", written("config.json", content), "config.json")
        for content in (b"", b"{", b"[1]")
    },
    **{
        f"{name} as {dtype}": (
            "inspect",
            tensors(
                lambda held, n=name, d=dtype: held.update({n: held.get(n, torch.zeros(8, 8)).to(d)})
            ),
            f"{name} is stored as",
        )
        for name, dtype in (
            (f"{EMBEDDING}.weight", torch.int8),
            (NORM, torch.uint8),
            ("model.layers.0.extra.weight", torch.bool),
            ("model.layers.0.extra.weight", torch.int32),
        )
    },
    "infinite norm": ("streamed load", filled(NORM, float("inf")), r"model\.norm"),
    "infinite block": (
        "streamed load",
        filled("model.layers.1.input_layernorm.weight", float("inf")),
        r"layers\.1\.input_layernorm",
    ),
    "no block weight": ("streamed load", without(f"{UP}.weight"), r"layers\.1\.mlp\.up_proj"),
    "no norm": ("streamed load", without(NORM), r"model\.norm\.weight"),
    "a short norm": (
        "streamed",
        tensor("model.layers.1.input_layernorm.weight", lambda values: values[:63]),
        r"shape \[63\], not \[64\]",
    ),
    "odd tokenizer": (
        "load",
        edited("tokenizer_config.json", model_max_length=""),
        "cannot read its tokenizer",
    ),
    **{
        f"config {change}": ("load streamed", config(**change), "")
        for change in (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}},
            {"rms_norm_eps": -1.0},
            {"rms_norm_eps": "small"},
            {"hidden_act": "none such"},
        )
    },
    **{
        f"config {change}"[:60]: ("inspect", config(**change), why)
        for change, why in (
            ({"architectures": [1]}, "architecture in its config is 1"),
            ({"architectures": {"a": 1}}, "not a causal language model"),
            ({"architectures": [CLASSIFIER]}, "not a causal language model"),
            ({"architectures": ["T5ForConditionalGeneration"]}, "not a causal language model"),
            ({"architectures": None}, "not a causal language model"),
            ({"num_labels": 2**31}, "num_labels"),
            ({"num_labels": []}, "num_labels"),
            ({"text_config": "llama"}, "text_config"),
            ({"model_type": ["llama"], "num_hidden_layers": 4}, "specifies 4 blocks"),
            ({"num_attention_heads": 0}, "num_attention_heads"),
            ({"num_attention_heads": 7, "head_dim": None}, "cannot be split into 7 heads"),
            ({"num_key_value_heads": 0}, "num_key_value_heads"),
            ({"head_dim": 0}, "head_dim"),
            ({"hidden_size": True}, "no hidden_size"),
            ({"vocab_size": 10**400}, "vocab_size"),
            ({"vocab_size": "many"}, "no vocab_size"),
            ({"transformers_weights": "other.safetensors"}, "names a file of weights"),
            ({"vocab_size": 600}, "embed_tokens.*config.json specifies"),
            ({"hidden_size": 128}, "embed_tokens.*config.json specifies"),
            ({"intermediate_size": 200}, r"mlp\.down_proj.*config.json specifies"),
            ({"num_attention_heads": 4}, r"self_attn\.o_proj.*config.json specifies"),
            ({"num_key_value_heads": 2}, r"self_attn\.k_proj.*config.json specifies"),
        )
    },
    "nested config": ("inspect", written("config.json", NESTED), "nested too deeply"),
    "long config": ("inspect", written("config.json", LONG), "up to 8 MiB"),
    "nested index": ("inspect", as_index(NESTED), "nested too deeply"),
    "long index": ("inspect", as_index(LONG), "up to 8 MiB"),
    "pipe": ("inspect", as_pipe, "not a regular file"),
    "long header": (
        "inspect",
        written("model.safetensors", struct.pack("<Q", len(LARGE_HEADER)) + LARGE_HEADER),
        "8 MiB to parse",
    ),
    "long name": ("inspect", tensors(renamed), "70,001 characters"),
    **{
        f"index {name!r}": ("inspect", indexed(name), "not a file in the folder")
        for name in (
            *("../other/model.safetensors", "/etc/passwd", "..\\model.safetensors", ".."),
            *("config.json", "", "a\0.safetensors", 7, ["shard.safetensors"]),
        )
    },
    **{
        f"link {name}": ("inspect load", linked(name), f"{name} is a link")
        for name in ("model.safetensors", "config.json", "tokenizer.json")
    },
    "adapter": ("inspect load", with_adapter, "adapter_config.json"),
    "no tokenizer": ("tokenizer load", without_tokenizer, "token"),
    "damaged tokenizer": ("tokenizer load", written("tokenizer.json", b"{"), "token"),
    "nested tokenizer": (
        "tokenizer load",
        written("tokenizer.json", b"[" + b"[]," * 10**6 + b"[]]"),
        "token",
    ),
    "large tokenizer": ("tokenizer load", with_token, "token"),
}
PACKED: dict[str, Case] = {
    **{
        f"quantization {change}"[:60]: ("inspect", config(quantization_config=change), why)
        for change, why in (
            ({"quant_method": "bitsandbytes"}, "quantized by bitsandbytes"),
            ({"quant_method": "gptq"}, "cannot be read"),
            ({"quant_method": "gptq", "bits": 9, "group_size": 32}, "9 bits"),
            ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "gemv"),
            ({"quant_method": "compressed-tensors", "config_groups": {}}, "cannot be read"),
            ("gptq", "not a JSON object"),
        )
    },
    **{
        f"weights {change}": ("layers", weights(**change), "")
        for change in (
            {"num_bits": 3},
            {"num_bits": 16},
            {"group_size": 64},
            {"group_size": "many"},
            {"symmetric": False},
        )
    },
    "no norm": ("packed", without(NORM), r"lacks model\.norm\.weight"),
    "no weights": ("packed", written("model.safetensors", b"damaged"), ""),
    "no layout": ("layout", without_layout, "no quantization_config"),
    "norm that is not finite": ("packed", filled(NORM, float("nan")), r"model\.norm.*not finite"),
    "scale that is not finite": ("packed", filled(SCALE, float("nan")), f"{UP}.*not finite"),
    "no scale": ("layers", without(SCALE), "no weight_scale"),
    "few codes": ("layers", tensor(f"{UP}.weight_packed", lambda t: t[:, 1:]), "weight_packed is"),
    "another shape": (
        "layers",
        tensor(f"{UP}.weight_shape", lambda _: torch.tensor([32, 32])),
        "weight_packed is",
    ),
    "few scales": ("layers", tensor(SCALE, lambda t: t[:, :1]), "do not match groups of 32"),
}
EMBEDDED: dict[str, Case] = {
    f"{change} {why}": ("dequantized", harm, why)
    for change, harm, why in (
        ("bits", group(bits=4), "weight_packed is"),
        ("bits", group(bits=9), "not supported"),
        ("bits", group(bits="many"), "cannot be read"),
        ("size", group(group_size=64), "do not match groups of 64"),
        ("size", group(group_size=-1), "not supported"),
        ("layers", group(layers=[]), "are empty or share"),
        ("layers", group(layers=[HEAD]), "lm_head as quantized, but it is not"),
        ("layers", group(layers=["model.layers.0.mlp.up_proj"]), "weight_packed is"),
        ("layers", group(layers=[EMBEDDING] * 2), "share a layer"),
        ("grid", group(grid="round"), "an unknown grid"),
        ("pattern", group(layers=["re:.*"]), "invalid name"),
        ("number", group(layers=[7]), "invalid name"),
        ("scale", without(f"{EMBEDDING}.weight_scale"), "It has no weight_scale"),
        (
            "scale",
            tensor(f"{EMBEDDING}.weight_scale", lambda t: t[:, :1]),
            "do not match|shape",
        ),
        ("scale", tensor(f"{EMBEDDING}.weight_scale", lambda t: t * float("nan")), "not finite"),
        ("shape", tensor(f"{EMBEDDING}.weight_shape", lambda t: t * 2), "weight_packed is"),
        ("codes", tensor(f"{EMBEDDING}.weight_packed", lambda t: t[:100]), "weight_packed is"),
        (
            "packed head",
            lambda folder: (
                group(layers=[EMBEDDING, HEAD])(folder),
                tensors(with_own_head)(folder),
            ),
            "ties model.embed_tokens.weight and lm_head.weight",
        ),
        (
            "plain head",
            tensors(lambda held: held.update({f"{HEAD}.weight": torch.zeros(512, 64).half()})),
            "ties model.embed_tokens.weight and lm_head.weight",
        ),
        (
            "cut",
            lambda folder: os.truncate(
                folder / "model.safetensors",
                (folder / "model.safetensors").stat().st_size - 1000,
            ),
            "cannot be read",
        ),
    )
}
EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight_scale"
MIXTURE: dict[str, Case] = {
    **{
        f"no {part}": ("packed gguf", without(part), "")
        for part in (
            ".experts.4.up_proj.",
            ".experts.4.",
            ".experts.4.down_proj.",
            ".experts.4.gate_proj.weight_scale",
        )
    },
    "one group": ("packed gguf", tensor(EXPERT, lambda t: t[:, :1]), ""),
}
CASES = [
    pytest.param(source, reader, change, why, id=f"{source}: {name}, {reader}")
    for source, cases in (
        ("toy", TOY),
        ("packed", PACKED),
        ("embedding", EMBEDDED),
        ("mixture", MIXTURE),
    )
    for name, (readers, change, why) in cases.items()
    for reader in readers.split()
]


@pytest.mark.parametrize(("source", "reader", "change", "why"), CASES)
def test_a_damaged_model_is_refused_in_words(
    sources: Path, current: Settings, source: str, reader: str, change: Change, why: str
) -> None:
    folder = shutil.copytree(sources / source, current.root / "models" / "mine")
    change(folder)
    with pytest.raises(SlimscopeError) as refused:
        if source == "mixture":
            inspect(str(folder))
        READERS[reader](folder)
    error = refused.value
    assert error.what and error.why and re.search(why, f"{error.what} {error.why}")
    if reader in ("inspect", "tokenizer", "load", "streamed"):
        assert error.field == "model" and error.do


def test_a_placeholder_behind_the_vocabulary_is_accepted(sources: Path, current: Settings) -> None:
    folder = shutil.copytree(sources / "toy", current.root / "models" / "mine")
    with_token(folder, "<image>", special=True)
    require_loadable(str(folder), 512)
    load(str(folder))
