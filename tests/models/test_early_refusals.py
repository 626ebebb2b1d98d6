"""Model folders with one or two things changed are refused before a run is queued, or they load,
compute, decode and can be saved. `SLIMSCOPE_TEST_ATTACK=2` or more tries 145 of them, each in a
child process as in production."""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from backend.errors import ModelError, SlimscopeError
from backend.limited import LimitedChildError
from backend.models.block_forward import logit_batches
from backend.models.construction import check_construction
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources import catalog
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
        assert all(x.isfinite().all() for x in logit_batches(loaded.model, ids, 1))
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


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The child's work without the child, which takes seconds to start."""

    def read(_: str, path: Path, __: object) -> None:
        try:
            check_construction(path)
        except ModelError as error:
            raise LimitedChildError(error.why) from error

    level = logging.get_verbosity()
    if ATTACK == 1:
        monkeypatch.setattr(catalog, "read", read)
    yield
    logging.set_verbosity(level)


@pytest.mark.usefixtures("in_this_process")
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


# in a child ---------------------------------------------------------------------------------------


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that have been built in a child."""
    folders: list[Path] = []
    limited = catalog.read

    def noted(parser: str, path: Path, stamp: Any = None) -> Any:
        folders.append(path.parent)
        return limited(parser, path, stamp)

    monkeypatch.setattr(catalog, "read", noted)
    return folders


@pytest.fixture
def folder(bases: Path, models: Path) -> Path:
    return shutil.copytree(bases / "toy", models / "mine")


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as refused:
        resolve_model(str(folder))
    assert refused.value.field == "model" and refused.value.do
    return refused.value.why


def test_a_folder_is_built_once_until_it_changes(folder: Path, children: list[Path]) -> None:
    for _ in range(3):
        assert resolve_model(str(folder)).facts.vocabulary == 512
    assert len(children) == 1
    change_json(folder / "config.json", "hidden_act", "unknown")
    assert "hidden_act 'unknown'" in refusal(folder)
    assert len(children) == 2


def test_what_passed_elsewhere_does_not_count(folder: Path, children: list[Path]) -> None:
    """The record of another folder, put in the place of this one's."""
    resolve_model(str(shutil.copytree(folder, folder.with_name("good"))))
    change_json(folder / "config.json", "rope_parameters", {"rope_type": "unknown"})
    (record,) = (settings().cache_dir / "read").iterdir()
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    shutil.copy(record, record.with_name(f"{name}.json"))
    assert "unknown key 'unknown'" in refusal(folder) and len(children) == 2


def test_a_config_that_takes_all_memory_ends_the_child_alone(models: Path) -> None:
    """Its rotary frequencies would take 30 GB."""
    write_tiny("phi", models / "mine")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1e9}
    change_json(models / "mine" / "config.json", "rope_parameters", rope)
    assert "memory" in refusal(models / "mine")
