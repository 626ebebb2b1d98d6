"""Model folders with something changed: each is refused with a reason, or it is loaded, computes,
decodes and can be saved; most are refused before a run is queued."""

import json
import resource
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from backend.checkpoints import MANIFEST
from backend.errors import ModelError, SlimscopeError
from backend.export.formats import Layout
from backend.limited import LimitedChildError
from backend.models.block_forward import logit_batches
from backend.models.construction import check_construction
from backend.models.loading import LoadedModel, load
from backend.models.saving import save
from backend.models.sources import catalog
from backend.models.sources.gguf_header import read_header
from backend.models.sources.spec import TOY_FOLDER
from backend.text.chat_template import chat_ids, end_ids
from jobs.fields.models import resolve_model
from jobs.runtime.loading import load_decoding, load_whole
from tests.conftest import ALL
from tests.models.sources.test_gguf import write_toy
from tests.models.sources.test_quantized import packed_toy
from tests.models.tiny_models import write_tiny

CONTEXT: Any = SimpleNamespace(log=lambda line: None, record_environment=lambda **_: None)
MOST_MEMORY = 2**20  # KiB that may be added
MOST_LATE = 1 / 10
FAMILIES = ("toy", "qwen3", "gemma2", "gpt2", "mixtral")
ROPES: tuple[dict[str, Any], ...] = (
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
VALUES = (
    *(0, -1, 1, 2, 3, 7, 64, 2**16, 2**31 - 1, 2**31, 2**63, 2**64, 10**30),
    *(0.0, -1.0, 0.5, 1e-300, 1e308, float("nan"), float("inf"), True, False, None),
    *("", "a", "x" * 5000, "../../secret", "/etc/passwd", "\0", "float64", "BOOL", "I64"),
    *("linear", "yarn", "dynamic", "llama3", "default", "unknown", "SiLU", "quick_gelu"),
    *([], {}, [[]], [0], [-1], ["a"], [1, 2**40], {"a": 1}, [[0, 2**62]]),
    *ROPES,
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ODD = st.sampled_from(VALUES) | ANY_JSON
KEYS = {  # file -> keys that it may have besides its own
    "config.json": (
        "rope_scaling rope_theta rope_parameters partial_rotary_factor head_dim attention_bias "
        "mlp_bias quantization_config torch_dtype dtype auto_map text_config sliding_window "
        "layer_types pretraining_tp tie_word_embeddings num_local_experts attn_implementation "
        "_attn_implementation model_type architectures attention_dropout n_inner n_positions "
        "is_decoder use_cache problem_type id2label num_labels output_attentions return_dict "
        "chunk_size_feed_forward pad_token_id eos_token_id add_cross_attention num_experts "
        "scale_attn_by_inverse_layer_idx transformers_weights query_pre_attn_scalar"
    ),
    "generation_config.json": (
        "max_length temperature do_sample num_beams top_k cache_implementation eos_token_id"
    ),
    "tokenizer.json": "model normalizer pre_tokenizer post_processor decoder added_tokens",
    "tokenizer_config.json": (
        "tokenizer_class vocab_file tokenizer_file init_inputs added_tokens_decoder "
        "model_max_length chat_template extra_special_tokens bos_token pad_token auto_map "
        "clean_up_tokenization_spaces padding_side name_or_path backend"
    ),
    "SOURCE.json": "title note origin license",
    "model.safetensors.index.json": "weight_map metadata",
}
SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "longer": lambda tensor: torch.cat([tensor, tensor]),
    "flat": lambda tensor: tensor.flatten(),
    "turned": lambda tensor: tensor.T.contiguous(),
    "integers": lambda tensor: tensor.to(torch.int32),
    "scalar": lambda tensor: tensor.flatten()[0].clone(),
}
OUTCOMES: Counter[str] = Counter()
Read = Callable[[Path], LoadedModel]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, and a packed one."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(TOY_FOLDER, folder / "toy", ignore=shutil.ignore_patterns("*.py", "__*"))
    for family in FAMILIES[1:]:
        write_tiny(family, folder / family, torch.float32)
    packed_toy(folder / "packed", Layout("compressed-tensors", 4, 32, "symmetric"))
    (folder / "packed" / MANIFEST).unlink(missing_ok=True)  # which would tell of any change
    return folder


@pytest.fixture
def models(own_cache: Path, data_dir: Path) -> Path:
    """The folder of a person's own models."""
    (data_dir / "models").mkdir(parents=True)
    return data_dir / "models"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The child's work without the child, which takes seconds to start."""

    def read(_: str, path: Path, *__: object) -> None:
        try:
            check_construction(path)
        except ModelError as error:
            raise LimitedChildError(error.why) from error

    level = logging.get_verbosity()
    if not ALL:
        monkeypatch.setattr(catalog, "read", read)
    yield
    logging.set_verbosity(level)


def copied(source: Path, models: Path) -> Path:
    shutil.rmtree(models / "mine", ignore_errors=True)
    return shutil.copytree(source, models / "mine")


def whole(spec: Path) -> LoadedModel:
    return load(str(spec))


def streamed(spec: Path) -> LoadedModel:
    return load(str(spec), streamed=True)


def unpacked(spec: Path) -> LoadedModel:
    return load_whole(resolve_model(str(spec)), "cpu", torch.float32, CONTEXT)


def packed(spec: Path) -> LoadedModel:
    return load_decoding(resolve_model(str(spec)), "cpu", torch.bfloat16, CONTEXT)


def outcome(spec: Path, read: Read) -> str:
    """Refused "early" or "late", or "fine": then it can be used as runs do."""
    before, when = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "early"
    try:
        resolve_model(str(spec))
        when = "late"
        loaded = read(spec)
        ids = torch.tensor([[1, 5, 3, 2, 9, 4]]) % loaded.facts.vocabulary
        with torch.no_grad():
            shown = ids[:, : loaded.facts.context]
            assert all(logits.isfinite().all() for logits in logit_batches(loaded.model, shown, 1))
        when = "fine" if read not in (whole, streamed) or can_be_used(loaded, spec) else "late"
    except SlimscopeError as error:
        assert error.what and (error.why or error.do), repr(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
    return when


def can_be_used(loaded: LoadedModel, spec: Path) -> bool:
    """It answers in a chat, and can be saved."""
    messages = [{"role": "user", "content": "One day a cat"}]
    with suppress(Exception):
        loaded.tokenizer.decode(chat_ids(messages, loaded.tokenizer))
        ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
        save(loaded.model, loaded.tokenizer, spec.with_name("saved"), "")
        return all(isinstance(end, int) for end in ends)
    return False


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
        node[name] = deepcopy(data.draw(ODD))


def change_json(file: Path, data: st.DataObject) -> None:
    """Change some values, or write something else in place of the file."""
    if data.draw(st.integers(0, 9)) == 0:
        file.write_bytes(data.draw(ANY_JSON.map(json.dumps).map(str.encode) | st.binary()))
        return
    tree = json.loads(file.read_text()) if file.exists() else {}
    for _ in range(data.draw(st.integers(1, 2))):
        mutate(tree, data, KEYS[file.name].split())
    file.write_text(json.dumps(tree))


def change_index(file: Path, data: st.DataObject) -> None:
    """Change an index that names the weights of another file."""
    names = load_file(file.with_name("model.safetensors"))
    file.with_name("model.safetensors").rename(file.with_name("shard.safetensors"))
    file.write_text(json.dumps({"weight_map": dict.fromkeys(names, "shard.safetensors")}))
    change_json(file, data)


def change_bytes(content: bytes, data: st.DataObject, most: int) -> bytes:
    """Some numbers overwritten, and perhaps the end cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(most, len(changed)) - 8))
        number = data.draw(st.sampled_from([0, 1, 2, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1]))
        form = data.draw(st.sampled_from("BIQ"))
        size = struct.calcsize(form)
        changed[place : place + size] = struct.pack(f"<{form}", number % 2 ** (8 * size))
    end = data.draw(st.none() | st.integers(0, len(changed)))
    return bytes(changed[:end])


def change_weights(file: Path, data: st.DataObject) -> None:
    how = data.draw(st.sampled_from(["bytes", "header", *SHAPES]))
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if how == "bytes":
        file.write_bytes(change_bytes(content, data, size + 8))
    elif how == "header":  # it is JSON, but lies
        header = json.loads(content[8 : 8 + size])
        mutate(header, data, ["__metadata__"])
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    else:
        tensors = load_file(file)
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = SHAPES[how](tensors[name])
        save_file(tensors, file, metadata={"format": "pt"})


CHANGES: dict[str, Callable[[Path, st.DataObject], None]] = {
    **dict.fromkeys(KEYS, change_json),
    "model.safetensors.index.json": change_index,
    "model.safetensors": change_weights,
}
FILES = st.sampled_from(["config.json"] * 4 + ["model.safetensors"] * 2 + [*CHANGES])
many = examples(derandomize=not ALL, database=None, suppress_health_check=[*HealthCheck])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("family", FAMILIES)
@many
@given(data=st.data())
def test_a_changed_folder_is_refused_or_works(
    sources: Path, models: Path, family: str, data: st.DataObject
) -> None:
    folder, file = copied(sources / family, models), data.draw(FILES)
    CHANGES[file](folder / file, data)
    OUTCOMES[outcome(folder, data.draw(st.sampled_from([whole, streamed])))] += 1


def test_few_changed_folders_are_refused_late() -> None:
    """Of those of the test above."""
    assert OUTCOMES["late"] <= MOST_LATE * OUTCOMES.total(), OUTCOMES


@pytest.mark.usefixtures("in_this_process")
@many
@given(data=st.data())
def test_a_changed_packed_folder_is_refused_or_works(
    sources: Path, models: Path, data: st.DataObject
) -> None:
    folder = copied(sources / "packed", models)
    file = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    CHANGES[file](folder / file, data)
    outcome(folder, data.draw(st.sampled_from([unpacked, packed])))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_toy(tmp_path_factory.mktemp("gguf") / "toy.gguf").read_bytes()


@many
@given(data=st.data())
def test_a_changed_gguf_file_is_refused_or_works(
    models: Path, gguf_file: bytes, data: st.DataObject
) -> None:
    """The header is read in this process: only what passes is given to a child."""
    file = models / "mine.gguf"
    file.write_bytes(change_bytes(gguf_file, data, data.draw(st.sampled_from([400, 20_000]))))
    with suppress(ModelError):
        read_header(file)
        outcome(file, whole)


# in a child ---------------------------------------------------------------------------------------


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that have been built in a child."""
    folders: list[Path] = []
    limited = catalog.read

    def noted(function: str, path: Path, *given: Any) -> Any:
        folders.append(path.parent)
        return limited(function, path, *given)

    monkeypatch.setattr(catalog, "read", noted)
    return folders


@pytest.fixture
def folder(sources: Path, models: Path) -> Path:
    return copied(sources / "toy", models)


def configured(folder: Path, **changes: object) -> str:
    """The reason why a folder with another config is refused."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError) as refused:
        resolve_model(str(folder))
    assert refused.value.field == "model" and refused.value.do
    return refused.value.why


def test_a_folder_is_built_once_until_it_changes(folder: Path, children: list[Path]) -> None:
    for _ in range(3):
        assert resolve_model(str(folder)).facts.vocabulary == 512
    assert len(children) == 1
    assert "hidden_act 'unknown'" in configured(folder, hidden_act="unknown")
    assert len(children) == 2


@pytest.mark.usefixtures("fresh_root")
def test_a_config_that_takes_all_memory_ends_the_child_alone(models: Path) -> None:
    """Its rotary frequencies would take 30 GB."""
    write_tiny("phi", models / "mine")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1e9}
    assert "memory" in configured(models / "mine", rope_parameters=rope)
