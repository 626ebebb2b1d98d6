"""Model folders with something changed: each is loaded with finite logits, or refused with a
reason. `SLIMSCOPE_TEST_ATTACK=25` tries many more, other ones each time."""

import json
import resource
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, PreTrainedModel

from backend.checkpoints import MANIFEST
from backend.errors import SlimscopeError
from backend.export.formats import Layout
from backend.models.block_forward import logit_batches
from backend.models.loading import LoadedModel, load
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import settings as our_settings
from jobs.fields.models import resolve_model
from jobs.runtime.loading import load_decoding, load_whole
from tests.conftest import ATTACK
from tests.models.sources.test_gguf import write_toy
from tests.models.sources.test_quantized import packed_toy

MUTATED = "models/mutated"
CONTEXT: Any = SimpleNamespace(log=lambda line: None, environment=lambda **_: None)
MOST_MEMORY = 2**20  # KiB that may be added
NASTY = st.sampled_from(
    [
        0,
        -1,
        1,
        2,
        3,
        7,
        64,
        2**16,
        2**31 - 1,
        2**31,
        2**63,
        2**64,
        10**30,
        0.0,
        -1.0,
        0.5,
        1e-300,
        1e308,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
        "",
        "a",
        "x" * 5000,
        "../../secret",
        "/etc/passwd",
        "\0",
        [],
        {},
        [[]],
        [0],
        [-1],
        [1, 2**40],
        {"a": 1},
        [[0, 2**62]],
        "float64",
        "BOOL",
        "I64",
        "linear",
        "yarn",
        "dynamic",
        "llama3",
        "default",
    ]
)
CONFIG_KEYS = [
    "rope_scaling",
    "rope_theta",
    "rope_parameters",
    "partial_rotary_factor",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "auto_map",
    "text_config",
    "sliding_window",
    "layer_types",
    "pretraining_tp",
    "tie_word_embeddings",
    "num_local_experts",
    "attn_implementation",
    "_attn_implementation",
    "model_type",
    "architectures",
    "attention_dropout",
    "n_inner",
    "n_positions",
    "is_decoder",
    "use_cache",
    "problem_type",
    "id2label",
    "num_labels",
    "output_attentions",
    "return_dict",
    "chunk_size_feed_forward",
    "pad_token_id",
    "eos_token_id",
    "add_cross_attention",
    "scale_attn_by_inverse_layer_idx",
]
TOKENIZER_KEYS = [
    "tokenizer_class",
    "vocab_file",
    "tokenizer_file",
    "init_inputs",
    "added_tokens_decoder",
    "model_max_length",
    "chat_template",
    "extra_special_tokens",
    "bos_token",
    "pad_token",
    "auto_map",
    "clean_up_tokenization_spaces",
    "padding_side",
    "name_or_path",
    "backend",
]


def many(examples: int) -> Callable[..., Any]:
    """So many examples, always the same ones; many others in an attack."""
    return settings(
        max_examples=examples * ATTACK,
        derandomize=ATTACK == 1,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(home))
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(home / "cache"))
    our_settings.cache_clear()


@pytest.fixture(scope="module")
def gguf(home: Path) -> bytes:
    return write_toy(home / "whole.gguf").read_bytes()


@pytest.fixture(scope="module")
def packed_folder(home: Path) -> Path:
    packed_toy(home / "packed", Layout("compressed-tensors", 4, 32, "symmetric"))
    (home / "packed" / MANIFEST).unlink(missing_ok=True)  # which would tell of any change
    return home / "packed"


@pytest.fixture
def gpt2(make: Callable[..., PreTrainedModel], home: Path) -> Path:
    """A model with learned positions, whose weights are stored [in, out]."""
    folder = home / "gpt2"
    if not folder.exists():
        config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        make(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TOY_FOLDER / name, folder)
    return folder


def copy_of(folder: Path, home: Path) -> Path:
    target = home / MUTATED
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


def whole(spec: Path) -> LoadedModel:
    return load(str(spec))


def streamed(spec: Path) -> LoadedModel:
    return load(str(spec), streamed=True)


def unpacked(spec: Path) -> LoadedModel:
    return load_whole(resolve_model(str(spec)), "cpu", torch.float32, CONTEXT)


def packed(spec: Path) -> LoadedModel:
    return load_decoding(resolve_model(str(spec)), "cpu", torch.bfloat16, CONTEXT)


def stands_or_is_refused(spec: Path, load_it: Callable[[Path], LoadedModel] = whole) -> None:
    """The one thing that has to hold."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        loaded = load_it(spec)
    except SlimscopeError as error:
        assert error.what and (error.why or error.do), repr(error)
        event("refused")
    else:
        ids = torch.tensor([[1, 5, 3, 2, 9, 4]]) % loaded.facts.vocabulary
        ids = ids[:, : loaded.facts.context]
        with torch.no_grad():
            assert all(x.isfinite().all() for x in logit_batches(loaded.model, ids, 1))
        event("loaded")
        loaded.tokenizer.decode(loaded.tokenizer.encode("One day a cat"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


def mutate(tree: Any, data: st.DataObject, keys: list[str]) -> None:
    """Change one value somewhere in a JSON object, or add one at the top."""
    node = tree
    for _ in range(12):
        names = [*node] if isinstance(node, dict) else [*range(len(node))]
        if node is tree:
            names += keys
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        inner = node.get(name) if isinstance(node, dict) else node[name]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 3)) == 0:
            break
        node = inner
    if isinstance(node, dict) and data.draw(st.integers(0, 4)) == 0:
        node.pop(name, None)
    else:
        node[name] = deepcopy(data.draw(NASTY))


def mutate_json(path: Path, data: st.DataObject, keys: list[str]) -> None:
    tree = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(tree, data, keys)
    path.write_text(json.dumps(tree))


def mutate_bytes(content: bytes, data: st.DataObject, most: int) -> bytes:
    """Some numbers overwritten, and perhaps the end cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(most, len(changed)) - 8))
        number = data.draw(st.sampled_from([0, 1, 2, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1]))
        form = data.draw(st.sampled_from("BIQ"))
        changed[place : place + struct.calcsize(form)] = struct.pack(
            f"<{form}", number % 2 ** (8 * struct.calcsize(form))
        )
    return bytes(
        changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed
    )


@pytest.mark.parametrize("base", ["toy", "gpt2"])
@many(30)
@given(data=st.data())
def test_config(home: Path, gpt2: Path, base: str, data: st.DataObject) -> None:
    folder = copy_of(TOY_FOLDER if base == "toy" else gpt2, home)
    file = data.draw(st.sampled_from(["config.json"] * 3 + ["generation_config.json"]))
    mutate_json(folder / file, data, CONFIG_KEYS)
    stands_or_is_refused(folder, data.draw(st.sampled_from([whole, streamed])))


@many(30)
@given(data=st.data())
def test_tokenizer(home: Path, data: st.DataObject) -> None:
    folder = copy_of(TOY_FOLDER, home)
    file = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    mutate_json(folder / file, data, TOKENIZER_KEYS)
    stands_or_is_refused(folder)


@many(30)
@given(data=st.data())
def test_safetensors(home: Path, data: st.DataObject) -> None:
    mutate_safetensors(copy_of(TOY_FOLDER, home) / "model.safetensors", data)
    stands_or_is_refused(home / MUTATED, data.draw(st.sampled_from([whole, streamed])))


@many(30)
@given(data=st.data())
def test_packed(home: Path, packed_folder: Path, data: st.DataObject) -> None:
    folder = copy_of(packed_folder, home)
    if data.draw(st.booleans()):
        mutate_json(folder / "config.json", data, ["quantization_config"])
    else:
        mutate_safetensors(folder / "model.safetensors", data)
    stands_or_is_refused(folder, data.draw(st.sampled_from([unpacked, packed])))


def mutate_safetensors(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        path.write_bytes(mutate_bytes(content, data, size + 8))
    else:  # a header that is JSON, but lies
        header = json.loads(content[8 : 8 + size])
        mutate(header, data, ["__metadata__"])
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@many(6)
@given(data=st.data())
def test_gguf(home: Path, gguf: bytes, data: st.DataObject) -> None:
    path = home / "models" / "mutated.gguf"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(mutate_bytes(gguf, data, 20_000 if data.draw(st.booleans()) else 400))
    stands_or_is_refused(path)
