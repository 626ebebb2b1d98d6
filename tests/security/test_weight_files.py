"""Headers, indexes and links of weight files are limited in size, and stay in the folder of the
model."""

import json
import shutil
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend import limited
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.settings import Settings
from tests.models.sources.test_gguf import write_toy
from tests.security.conftest import refusal


@pytest.mark.parametrize(
    "name",
    [
        "../other/model.safetensors",
        "/etc/passwd",
        "..\\model.safetensors",
        "..",
        "config.json",
        "",
        "a\0.safetensors",
        7,
        ["shard.safetensors"],
    ],
)
def test_an_index_names_files_of_the_folder_alone(folder: Path, name: object) -> None:
    """Files in the other folder exist, and so does a file of the same name in this folder."""
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
    other = shutil.copytree(repository, repository.with_name("mine"), symlinks=True)  # of no hub
    assert "is a link" in refusal(other / "snapshots" / "abc").why
    (snapshot / "config.json").unlink()
    shutil.copy(TOY_FOLDER / "config.json", repository.parent / "config.json")
    (snapshot / "config.json").symlink_to(repository.parent / "config.json")
    assert "config.json is a link" in refusal(snapshot).why


def test_a_header_that_is_too_large_is_not_parsed(folder: Path) -> None:
    header = b'{"__metadata__":{"a":"' + b"x" * 2**23 + b'"}}'
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content)
    assert "8 MiB to parse" in refusal(folder).why
    save_file({"layers." * 10_000 + "x": torch.zeros(1)}, folder / "model.safetensors")
    assert "70,001 characters" in refusal(folder).why


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
]


@pytest.mark.parametrize(("content", "why"), BOMBS)
def test_a_gguf_header_that_announces_too_much(current: Settings, content: bytes, why: str) -> None:
    file = current.root / "models" / "bomb.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert why in refusal(file).why


def test_a_gguf_file_with_an_adapter_beside_it_is_refused(current: Settings) -> None:
    file = write_toy(current.root / "models" / "toy.gguf")
    (file.parent / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal(file).why


def outcome(parser: str, path: Path) -> object:
    return limited.read(f"tests.security.parsers:{parser}", path)


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


def test_answers_are_kept_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert outcome("size", tmp_path / "file") == 5
    with monkeypatch.context() as patch:
        patch.setattr(limited, "LimitedChild", None)
        assert outcome("size", tmp_path / "file") == 5
    (tmp_path / "file").write_bytes(b"123")
    assert outcome("size", tmp_path / "file") == 3


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
