"""Model folders with one or two things changed are refused before a run is queued, or they load,
compute, decode and can be saved. `SLIMSCOPE_TEST_ATTACK=2` or more tries 145 of them."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend.errors import SlimscopeError
from backend.models.block_forward import each_logits
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import settings
from backend.text.chat_template import chat_ids, end_ids
from jobs.fields.models import resolve_model
from tests.conftest import ATTACK
from tests.models.tiny_models import write_tiny

MUTANTS = 12 if ATTACK == 1 else 145
MOST_LATE = 10 / 145
BASES = ("toy", "qwen3", "gemma2", "gpt2", "mixtral")
ODD: tuple[Any, ...] = (
    0,
    -1,
    3,
    2**31,
    10**30,
    0.5,
    -1.0,
    1e308,
    float("nan"),
    True,
    None,
    "",
    "a",
    [],
    {},
    [0],
    [-1],
    ["a"],
    {"a": 1},
    [[]],
)
ROPES: tuple[Any, ...] = (
    {"rope_type": "unknown", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0},
    {"rope_type": "linear", "factor": 0.0, "rope_theta": 10000.0},
    {"rope_type": "linear", "factor": "2", "rope_theta": 10000.0},
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": -1.0},
    {"rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0},
    {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "rope_theta": 1e4},
    {"rope_type": "dynamic", "factor": None, "rope_theta": 10000.0},
    {"rope_theta": "many", "rope_type": "default"},
    {"rope_theta": 0, "rope_type": "default"},
    {"type": "linear"},
    {"full_attention": {"rope_type": "default"}},
)
FIELDS = (
    "attention_bias",
    "attention_dropout",
    "attn_implementation",
    "dtype",
    "head_dim",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_epsilon",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "n_inner",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_local_experts",
    "pad_token_id",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
ACTIVATIONS = ("unknown", "", None, 3, ["silu"], "SiLU", "quick_gelu", {"a": 1})
GENERATION = (
    "max_length",
    "temperature",
    "do_sample",
    "num_beams",
    "top_k",
    "cache_implementation",
)
TOKENIZER = (
    "tokenizer_class",
    "model_max_length",
    "added_tokens_decoder",
    "extra_special_tokens",
    "bos_token",
    "eos_token",
    "padding_side",
    "chat_template",
)
Draw = random.Random


def change_json(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    content[key] = value
    file.write_text(json.dumps(content))


def rope(folder: Path, draw: Draw) -> None:
    key = draw.choice(("rope_parameters", "rope_scaling"))
    change_json(folder / "config.json", key, draw.choice((*ROPES, *ODD)))


def activation(folder: Path, draw: Draw) -> None:
    config = json.loads((folder / "config.json").read_text())
    keys = [
        key for key in ("hidden_act", "hidden_activation", "activation_function") if key in config
    ]
    change_json(folder / "config.json", draw.choice(keys), draw.choice(ACTIVATIONS))


def ends(folder: Path, draw: Draw) -> None:
    file = draw.choice(("config.json", "generation_config.json"))
    change_json(folder / file, draw.choice(("eos_token_id", "bos_token_id")), draw.choice(ODD))


def shapes(folder: Path, draw: Draw) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    tensor = tensors.pop(name)
    match draw.choice(("gone", "renamed", "longer", "flat", "turned", "integers", "scalar")):
        case "renamed":
            tensors[f"{name}.other"] = tensor
        case "longer":
            tensors[name] = torch.cat([tensor, tensor])
        case "flat":
            tensors[name] = tensor.flatten()
        case "turned":
            tensors[name] = tensor.T.contiguous()
        case "integers":
            tensors[name] = tensor.to(torch.int32)
        case "scalar":
            tensors[name] = tensor.flatten()[0].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def fields(folder: Path, draw: Draw) -> None:
    for _ in range(draw.randint(1, 2)):
        change_json(folder / "config.json", draw.choice(FIELDS), draw.choice(ODD))


def other_weights(folder: Path, draw: Draw) -> None:
    name = draw.choice(("other.safetensors", "../model.safetensors", "model.bin", 3, None))
    change_json(folder / "config.json", "transformers_weights", name)


def generation(folder: Path, draw: Draw) -> None:
    change_json(folder / "generation_config.json", draw.choice(GENERATION), draw.choice(ODD))


def tokenizer(folder: Path, draw: Draw) -> None:
    change_json(folder / "tokenizer_config.json", draw.choice(TOKENIZER), draw.choice(ODD))


CHANGES: tuple[Callable[[Path, Draw], None], ...] = (
    rope,
    activation,
    ends,
    shapes,
    fields,
    fields,
    other_weights,
    generation,
    tokenizer,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    shutil.copytree(TOY_FOLDER, folder / "toy", ignore=shutil.ignore_patterns("*.py", "__*"))
    for family in BASES[1:]:
        write_tiny(family, folder / family, torch.float32)
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a person's own models."""
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    return tmp_path / "models"


def mutant(number: int, bases: Path, models: Path) -> tuple[Path, str]:
    """A changed folder, and the kind of its change; the same ones every time."""
    draw = Draw(number)
    change, base = CHANGES[number % len(CHANGES)], draw.choice(BASES)
    folder = models / f"{number}-{base}-{change.__name__}"
    shutil.copytree(bases / base, folder)
    change(folder, draw)
    return folder, change.__name__


def use(folder: Path, saved: Path) -> None:
    """Do with a model what runs do."""
    loaded = load(str(folder))
    ids = torch.tensor([chat_ids([{"role": "user", "content": "One day a cat"}], loaded.tokenizer)])
    with torch.no_grad():
        assert all(x.isfinite().all() for x in each_logits(loaded.model, ids, 1))
    ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
    assert all(isinstance(end, int) for end in ends)
    loaded.tokenizer.decode(ids[0].tolist())
    save(loaded.model, loaded.tokenizer, saved, "")


def outcome(folder: Path, saved: Path) -> tuple[str, str]:
    """When a folder is refused, and why."""
    try:
        resolve_model(str(folder))
    except SlimscopeError as error:
        assert error.what and error.why and error.field == "model", repr(error)
        return "early", str(error)
    try:
        use(folder, saved)
    except Exception as error:
        return "late", repr(error)
    return "fine", ""


def test_few_changed_folders_are_refused_late(bases: Path, models: Path) -> None:
    found: Counter[str] = Counter()
    late: list[str] = []
    for number in range(MUTANTS):
        folder, _ = mutant(number, bases, models)
        when, why = outcome(folder, models.parent / f"saved-{number}")
        found[when] += 1
        if when == "late":
            late.append(f"{folder.name}: {why}")
        shutil.rmtree(folder)
    print(dict(found))
    assert found["early"] and found["fine"]
    assert len(late) <= MOST_LATE * MUTANTS, "\n".join(late)
