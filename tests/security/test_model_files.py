"""Model files from strangers: whatever they hold, a clear refusal, in little time and memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import tracemalloc
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from backend import checkpoints
from backend.checkpoints import Checkpoints, sha256_of
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources import hub, limited
from backend.models.sources.catalogue import inspect, require_tokenizer
from backend.models.sources.gguf_header import read_header
from backend.models.sources.materialise import materialise
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings
from tests.models.sources.test_gguf import write_toy


@pytest.fixture
def folder(current: Settings) -> Path:
    """A copy of the toy that a test may spoil."""
    target = current.root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, target)
    return target


def refusal(spec: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        inspect(str(spec))
    error = caught.value
    assert error.field == "model" and error.what and error.why and error.do
    return error


# adapters -----------------------------------------------------------------------------------------

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    get_peft_model(load("toy").model, LORA).save_pretrained(folder)
    assert "adapter_config.json" in refusal(folder).why
    assert "merge_and_unload" in refusal(folder).do
    with pytest.raises(ModelError, match="not merged"):
        load(str(folder))


def test_an_adapter_that_appears_after_the_inspection_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = inspect(str(folder))
    monkeypatch.setattr("backend.models.loading.inspect", lambda spec: facts)
    get_peft_model(load("toy").model, LORA).save_pretrained(folder)
    with pytest.raises(ModelError, match="not merged"):
        load(str(folder))


def test_a_download_leaves_adapters_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}

    def snapshot(hub_id: str, **options: object) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: None)
    hub.download("org/name")
    files = ["config.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    wanted = filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert [*wanted] == ["config.json", "tokenizer.json"]


def test_a_model_with_an_adapter_is_not_saved_as_if_it_had_none(tmp_path: Path) -> None:
    loaded = load("toy")
    get_peft_model(loaded.model, LORA)  # wraps the layers in place
    with pytest.raises(ModelError, match="does not match its config") as refused:
        save(loaded.model, loaded.tokenizer, tmp_path, "")
    assert any(tmp_path.iterdir()) and "Nothing was saved" not in str(refused.value)


def test_a_saved_tensor_of_another_shape_is_noticed(tmp_path: Path) -> None:
    loaded = load("toy")
    loaded.model.config.intermediate_size //= 2
    with pytest.raises(ModelError, match=r"has the shape \[192, 64\], not \[96, 64\]"):
        save(loaded.model, loaded.tokenizer, tmp_path, "")


# configs ------------------------------------------------------------------------------------------


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": [1]}, "architecture in its config is 1"),
        ({"architectures": {"a": 1}}, "not a causal language model"),
        ({"text_config": "llama"}, "text_config"),
        ({"model_type": ["llama"], "num_hidden_layers": 4}, "specifies 4 blocks"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 7, "head_dim": None}, "cannot be split into 7 heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"hidden_size": True}, "no hidden_size"),
        ({"vocab_size": 10**400}, "vocab_size"),
    ],
)
def test_a_config_that_means_nothing_is_refused(folder: Path, changes: dict, reason: str) -> None:
    configure(folder, **changes)
    assert reason in refusal(folder).why


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vocab_size": 600}, "embed_tokens"),
        ({"hidden_size": 128}, "embed_tokens"),
        ({"intermediate_size": 200}, "mlp.down_proj"),
        ({"num_attention_heads": 4}, "self_attn.o_proj"),
        ({"num_key_value_heads": 2}, "self_attn.k_proj"),
    ],
)
def test_shapes_unlike_the_config_are_refused(folder: Path, changes: dict, name: str) -> None:
    configure(folder, **changes)
    assert name in refusal(folder).why and "config.json specifies" in refusal(folder).why


def test_a_config_of_countless_blocks_takes_no_memory(folder: Path) -> None:
    configure(folder, num_hidden_layers=10**7)
    inspect("toy")
    tracemalloc.start()
    try:
        assert "num_hidden_layers" in refusal(folder).why
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[" * 500_000, "nested too deeply"), (b'{"a":"' + b"x" * 2**23 + b'"}', "up to 8 MiB")],
)
def test_json_is_bounded(folder: Path, name: str, content: bytes, reason: str) -> None:
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert reason in refusal(folder).why


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "not a regular file" in refusal(folder).why


# weight files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/passwd", "..\\model.safetensors", "..", "config.json",
     "", "a\0.safetensors", 7],
)  # fmt: skip
def test_an_index_names_files_of_the_folder_alone(folder: Path, name: object) -> None:
    """Those of the other folder exist, and the last part of the name in this one, too."""
    shutil.copytree(folder, folder.parent / "other")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "passwd").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    assert "not a file in the folder" in refusal(folder).why


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_to_another_folder_is_refused(folder: Path, name: str) -> None:
    shutil.copytree(folder, folder.parent / "other")
    (folder / name).unlink()
    (folder / name).symlink_to(folder.parent / "other" / name)
    assert f"{name} is a link" in refusal(folder).why
    with pytest.raises(ModelError, match="is a link"):
        load(str(folder))


def test_a_snapshot_of_the_hub_links_to_its_blobs(current: Settings) -> None:
    repository = current.root / "models" / "models--org--small"
    shutil.copytree(TOY_FOLDER, repository / "blobs")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").glob("*.*"):
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    assert load(str(snapshot)).facts.parameters == inspect("toy").parameters
    (snapshot / "config.json").unlink()
    shutil.copy(TOY_FOLDER / "config.json", repository.parent / "config.json")
    (snapshot / "config.json").symlink_to(repository.parent / "config.json")
    assert "config.json is a link" in refusal(snapshot).why


def test_a_header_that_is_too_large_is_not_parsed(folder: Path) -> None:
    header = b'{"__metadata__":{"a":"' + b"x" * 2**23 + b'"}}'
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content)
    assert "8 MiB to parse" in refusal(folder).why


def test_a_tensor_whose_name_is_a_book_is_refused(folder: Path) -> None:
    save_file({"layers." * 10_000 + "x": torch.zeros(1)}, folder / "model.safetensors")
    assert "70,001 characters" in refusal(folder).why


def gguf_bomb(kind: int, length: int) -> bytes:
    """A GGUF file of 4 kB whose only field is an array of so many elements of a type."""
    key = b"general.architecture"
    field = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, length)
    return (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field).ljust(4096, b"\0")


@pytest.mark.parametrize(("kind", "length"), [(0, 2**40), (8, 2**40), (9, 2**20), (4, 2**63)])
def test_an_array_without_end_in_a_gguf_file(current: Settings, kind: int, length: int) -> None:
    file = current.root / "models" / "bomb.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(gguf_bomb(kind, length))
    assert "ends before" in refusal(file).why


def test_a_gguf_file_with_an_adapter_beside_it_is_refused(current: Settings) -> None:
    file = write_toy(current.root / "models" / "toy.gguf")
    (file.parent / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal(file).why


def outcome(parser: str, path: Path) -> object:
    return limited.read(f"tests.security.parsers:{parser}", path)


@pytest.mark.parametrize(
    ("parser", "reason"),
    [("hog", "of memory"), ("killed", "20 s"), ("crash", "crashed"), ("chatter", "too large")],
)
def test_the_child_process_has_limits(tmp_path: Path, parser: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(limited.UnreadableFileError, match=reason):
        outcome(parser, tmp_path / "file")


def test_the_child_process_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(limited, "WALL_S", 0.2)
    with pytest.raises(limited.UnreadableFileError, match=r"more than 0\.2 s"):
        outcome("sleep", tmp_path / "file")


def test_an_answer_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert outcome("size", tmp_path / "file") == 5
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        assert outcome("size", tmp_path / "file") == 5
    (tmp_path / "file").write_bytes(b"123")
    assert outcome("size", tmp_path / "file") == 3


# tokenizers ---------------------------------------------------------------------------------------


def retokenize(folder: Path, token: str, number: int, special: bool) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {"id": number, "content": token, "special": special, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    tokenizer["added_tokens"].append(added)
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("harm", ["missing", "damaged", "bomb", "too large"])
def test_a_tokenizer_that_does_not_work_is_refused(folder: Path, harm: str) -> None:
    path = folder / "tokenizer.json"
    if harm == "missing":
        for file in folder.glob("*token*"):
            file.unlink()
    elif harm == "too large":
        retokenize(folder, "<new>", 512, special=False)
    else:
        path.write_text("{" if harm == "damaged" else "[" + "[]," * 10**6 + "[]]")
    for check in (lambda: require_tokenizer(str(folder), 512), lambda: load(str(folder))):
        with pytest.raises(ModelError) as caught:
            check()
        assert caught.value.field == "model" and "token" in caught.value.why and caught.value.do


def test_a_placeholder_behind_the_vocabulary_is_accepted(folder: Path) -> None:
    retokenize(folder, "<image>", 512, special=True)
    require_tokenizer(str(folder), 512)
    load(str(folder))


# saved models -------------------------------------------------------------------------------------


@pytest.fixture
def saved_folder(current: Settings) -> Path:
    """What a run has saved."""
    loaded = load("toy")
    with Checkpoints(current.artifacts / "sds-0001").write("model") as draft:
        save(loaded.model, loaded.tokenizer, draft, "# A card")
    return current.artifacts / "sds-0001" / "model"


def zero(file: Path, count: int = 60_000) -> None:
    """Write zeros into the middle of a file, which keeps its size."""
    content = bytearray(file.read_bytes())
    start = len(content) // 4
    content[start : start + count] = bytes(count)
    file.write_bytes(content)


def test_a_saved_model_that_was_changed_is_not_loaded(saved_folder: Path) -> None:
    assert load(str(saved_folder)).facts.blocks == 3
    (saved_folder / "README.md").write_text("# Notes of mine")
    assert load(str(saved_folder)).facts.blocks == 3
    zero(saved_folder / "model.safetensors")
    for read in (load, materialise):
        with pytest.raises(ModelError) as caught:
            read(str(saved_folder))
        assert caught.value.what == "The model of sds-0001 is damaged."
        assert "model.safetensors has changed" in caught.value.why
        assert "run sds-0001 again" in caught.value.do


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_saved_file_of_another_size_is_noticed_at_once(saved_folder: Path, name: str) -> None:
    (saved_folder / name).write_bytes((saved_folder / name).read_bytes() + b"\n")
    assert f"{name} has changed" in refusal(saved_folder).why
    (saved_folder / name).unlink()
    assert f"{name} has changed" in refusal(saved_folder).why


def test_a_saved_file_is_read_once_until_it_changes(
    saved_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def sha256(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checkpoints, "sha256_of", sha256)
    for _ in range(2):
        assert checkpoints.changed_file(saved_folder, contents=True) == ""
    assert hashed.count("model.safetensors") == 1
    os.utime(saved_folder / "model.safetensors")
    assert checkpoints.changed_file(saved_folder, contents=True) == ""
    assert hashed.count("model.safetensors") == 2


@pytest.mark.parametrize(
    "content", ['{"a": 1}', '{"/etc/passwd": {"bytes": 1, "sha256": ""}}', "[]"]
)
def test_a_manifest_of_another_program_says_nothing(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    assert load(str(folder)).facts.blocks == 3


# any content --------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["weight_map", "a"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FUZZ = hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
CONFIG = json.loads((TOY_FOLDER / "config.json").read_text())
WEIGHTS = (TOY_FOLDER / "model.safetensors").read_bytes()
HEADER = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])


def only_refuses(spec: Path) -> None:
    with suppress(ModelError):
        inspect(str(spec))


@FUZZ
@hypothesis.given(st.dictionaries(st.sampled_from([*CONFIG, "text_config", "num_experts"]), JSON))
def test_any_config(folder: Path, changes: dict) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    only_refuses(folder)


@FUZZ
@hypothesis.given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_any_content_of_a_json_file(folder: Path, content: bytes) -> None:
    (folder / "SOURCE.json").write_bytes(content)
    only_refuses(folder)
    (folder / "config.json").write_bytes(content)
    only_refuses(folder)


@FUZZ
@hypothesis.given(JSON | st.dictionaries(st.just("weight_map"), JSON, min_size=1))
def test_any_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    only_refuses(folder)


@FUZZ
@hypothesis.given(
    st.dictionaries(st.sampled_from([*HEADER]), JSON, max_size=3),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_a_weight_file(folder: Path, changes: dict, length: int | None) -> None:
    header = json.dumps(HEADER | changes).encode()
    size = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + WEIGHTS[-9:])
    only_refuses(folder)


@hypothesis.settings(FUZZ, max_examples=8)
@hypothesis.given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=50))
def test_any_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError):
        require_tokenizer(str(folder), 512)


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_toy(tmp_path_factory.mktemp("gguf") / "toy.gguf").read_bytes()


@FUZZ
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 600) | st.integers(0, 30_000), st.integers(0, 255))),
    st.none() | st.integers(0, 40_000),
)
def test_any_gguf_file(
    gguf_file: bytes, tmp_path: Path, changes: list[tuple[int, int]], end: int | None
) -> None:
    """In this process, so that a hundred are read in seconds; the child has the same function."""
    content = bytearray(gguf_file)
    for place, byte in changes:
        content[place] = byte
    (tmp_path / "any.gguf").write_bytes(content[:end])
    with suppress(ModelError):
        read_header(tmp_path / "any.gguf")
