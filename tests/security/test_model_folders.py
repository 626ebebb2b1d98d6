"""Adapters, changed saved models, links and headers: model folders stay within their limits."""

import os
import shutil
import signal
import struct
import tracemalloc
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model

from backend import checkpoints, limited
from backend.checkpoints import Checkpoints, sha256_of
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources import hub
from backend.models.sources.catalog import inspect, materialize
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings
from tests.models.sources.test_gguf import write_toy
from tests.security.conftest import configure, refusal

# adapters -----------------------------------------------------------------------------------------

LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


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
    loaded = load("toy")
    loaded.model.config.intermediate_size //= 2
    with pytest.raises(ModelError, match=r"has the shape \[192, 64\], not \[96, 64\]"):
        save(loaded.model, loaded.tokenizer, tmp_path, "")


# configs ------------------------------------------------------------------------------------------


def test_a_config_of_countless_blocks_takes_no_memory(folder: Path) -> None:
    configure(folder, num_hidden_layers=10**7)
    inspect("toy")
    tracemalloc.start()
    try:
        assert "num_hidden_layers" in refusal(folder).why
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


# tokenizers ---------------------------------------------------------------------------------------


# changed models -----------------------------------------------------------------------------------


@pytest.fixture
def saved_folder(current: Settings) -> Path:
    """A model saved by a run."""
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
    for read in (load, materialize):
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


# weight files -------------------------------------------------------------------------------------


def test_a_snapshot_of_the_hub_links_to_its_blobs(current: Settings) -> None:
    repository = current.root / "models" / "models--org--small"
    shutil.copytree(TOY_FOLDER, repository / "blobs")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob in (repository / "blobs").glob("*.*"):
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    assert load(str(snapshot)).facts.parameters == inspect("toy").parameters
    other = shutil.copytree(repository, repository.with_name("mine"), symlinks=True)  # of no hub
    assert "is a link" in refusal(other / "snapshots" / "abc").why
    (snapshot / "config.json").unlink()
    shutil.copy(TOY_FOLDER / "config.json", repository.parent / "config.json")
    (snapshot / "config.json").symlink_to(repository.parent / "config.json")
    assert "config.json is a link" in refusal(snapshot).why


def gguf_bomb(kind: int, length: int, content: bytes = b"", tensors: int = 0) -> bytes:
    """Return a GGUF file of 4 kB whose only field announces an array with this number of
    elements."""
    key = b"general.architecture"
    field = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, kind, length) + content
    return (b"GGUF" + struct.pack("<IQQ", 3, tensors, 1) + field).ljust(4096, b"\0")


LONGEST = (2**64 - 1).to_bytes(8, "little")
BOMBS = [
    (gguf_bomb(0, 2**40), "ends before"),
    (gguf_bomb(8, 2**40), "ends before"),
    (gguf_bomb(4, 2**63), "ends before"),
    (gguf_bomb(8, 1, LONGEST), "ends before"),
    (gguf_bomb(8, 2, LONGEST * 2), "ends before"),
    (gguf_bomb(9, 2**20), "an array of arrays"),
    (gguf_bomb(0, 0, tensors=2**40), "1,099,511,627,776 tensors"),
    *((content, "cannot be read as GGUF") for content in (b"", b"no gguf", b"GGUF" + b"\xff" * 64)),
]


@pytest.mark.parametrize(("content", "why"), BOMBS)
def test_a_gguf_header_that_announces_too_much(current: Settings, content: bytes, why: str) -> None:
    file = current.root / "models" / "bomb.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert why in f"{refusal(file).what} {refusal(file).why}"


def test_a_gguf_file_with_an_adapter_beside_it_is_refused(current: Settings) -> None:
    file = write_toy(current.root / "models" / "toy.gguf")
    (file.parent / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal(file).why


def outcome(parser: str, path: Path) -> object:
    return limited.read(f"tests.security.parsers:{parser}", path)


@pytest.mark.usefixtures("fresh_root")
@pytest.mark.parametrize(
    ("parser", "reason"),
    [
        ("hog", "of memory"),
        ("killed", "takes more than 20 s"),
        ("crash", "crashed"),
        ("chatter", "too large"),
    ],
)
def test_the_child_process_has_limits(tmp_path: Path, parser: str, reason: str) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(limited.LimitedChildError, match=reason):
        outcome(parser, tmp_path / "file")


def test_a_hung_child_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(limited, "IMPORT_S", 0.2 - limited.WALL_TIME_FACTOR * limited.READ_S)
    with pytest.raises(limited.LimitedChildError, match=r"more than 0\.2 s"):
        outcome("sleep", tmp_path / "file")


@pytest.mark.usefixtures("fresh_root")
def test_a_late_reply_answers_no_other_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that forks children stands still until a request has timed out."""
    limited.LimitedChild(2**28).close()
    root = limited._roots[0]._process
    root.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch, pytest.raises(limited.LimitedChildError):
        patch.setattr(limited, "START_S", 0.05)
        limited.LimitedChild(2**28)
    root.send_signal(signal.SIGCONT)
    (tmp_path / "file").write_bytes(b"12345")
    assert outcome("size", tmp_path / "file") == 5
    assert limited._roots[0]._process.pid != root.pid
