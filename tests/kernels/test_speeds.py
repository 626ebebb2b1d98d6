"""Speeds of the kernels and of PyTorch, and what reads texts by them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.compiler import CompilerError
from backend.kernels import speeds as room
from backend.kernels.library import kernels_or_none
from backend.kernels.speeds import ReadingSpeeds, reading_speeds


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a machine on which nothing has been measured."""
    if kernels_or_none() is None:
        pytest.skip("no kernels can be built here")
    monkeypatch.setattr(room, "_file", lambda: tmp_path / "speeds.json")
    reading_speeds.cache_clear()
    yield tmp_path / "speeds.json"
    reading_speeds.cache_clear()


def test_they_are_measured_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.process_time()
    found = reading_speeds()
    assert time.process_time() - began < 5  # some 20 ms where nothing else computes
    reading_speeds.cache_clear()
    monkeypatch.setattr(room, "_measured", lambda: pytest.fail("they are known"))
    assert reading_speeds() == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"kernels": 0, "float32": 1, "bfloat16": 1}',
        '{"kernels": -1, "float32": 1, "bfloat16": 1}',
        '{"kernels": NaN, "float32": 1, "bfloat16": 1}',
        '{"kernels": Infinity, "float32": 1, "bfloat16": 1}',
        '{"kernels": "fast", "float32": 1, "bfloat16": 1}',
        "[" * 10_000,
    ],
)
def test_a_damaged_file_is_measured_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file.write_text(text)
    right = ReadingSpeeds(kernels=4, float32=1, bfloat16=2)
    monkeypatch.setattr(room, "_measured", lambda: right)
    assert reading_speeds() == right
    assert ReadingSpeeds.model_validate_json(file.read_bytes()) == right


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_file", lambda: file / "no" / "folder.json")
    assert reading_speeds().kernels > 0


def test_other_machines_and_versions_have_files_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {room._file()}
    for name, value in (
        ("processor_flags", lambda: frozenset({"none"})),
        ("kernel_version", lambda: "another"),
        ("version", lambda _: "0.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, value)
            names.add(room._file())
    monkeypatch.setattr(room.platform, "node", lambda: "another")
    assert len(names | {room._file()}) == 5


def test_without_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CompilerError("No kernels.", "No compiler.", "Install one.")

    monkeypatch.setattr(room, "kernels", missing)
    reading_speeds.cache_clear()
    with pytest.raises(CompilerError):
        reading_speeds()


def test_the_faster_one_is_named() -> None:
    speeds = ReadingSpeeds(kernels=400, float32=100, bfloat16=800)
    assert speeds.compared("float32") == (
        True,
        "the kernels take 0.25 of the time of PyTorch in float32",
    )
    assert not speeds.compared("bfloat16")[0]
