"""Saved models are compared with their manifest when they are loaded."""

import os
from pathlib import Path

import pytest

from backend import checkpoints
from backend.checkpoints import Checkpoints, sha256_of
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.saving import save
from backend.models.sources.catalog import materialize
from backend.settings import Settings
from tests.security.conftest import refusal


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
