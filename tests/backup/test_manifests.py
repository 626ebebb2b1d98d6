"""A manifest of a stranger names no more files than its archive holds, and an archive holds no more
than are read soon; who names more is refused before anything is parsed."""

import json
import tarfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.backup import reading, writing
from backend.backup.reading import open_archive
from backend.backup.writing import MOST_FILES, OF_ONE_RUN, TOPS, SourceFile, write_archive
from backend.errors import BackupError

MANY = 200_000
KINDS = pytest.mark.parametrize("tops", [TOPS, OF_ONE_RUN], ids=["backup", "run"])


def numbered(count: int) -> list[str]:
    return [f"artifacts/count-0001/{number}" for number in range(count)]


def archive(target: Path, held: Iterable[str], named: Iterable[str], entry: object) -> Path:
    """An archive that holds empty files, and names others in its manifest."""
    manifest = {
        "version": "0.1.0",
        "schema_revision": "0001",
        "created_at": 1,
        "weights": False,
        "checkpoints": False,
        "files": dict.fromkeys(named, entry),
    }
    text = json.dumps(manifest).encode()
    with tarfile.open(target, "w") as file:
        for name in held:
            file.addfile(tarfile.TarInfo(name))
        last = tarfile.TarInfo("manifest.json")
        last.size = len(text)
        file.addfile(last, BytesIO(text))
    return target


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The manifests that have been parsed."""
    texts: list[bytes] = []
    monkeypatch.setattr(
        reading, "Manifest", SimpleNamespace(model_validate_json=lambda text: texts.append(text))
    )
    return texts


@KINDS
@pytest.mark.parametrize("entry", [0, {"bytes": 0, "sha256": "0" * 64}], ids=["bad", "good"])
def test_a_manifest_of_many_names_is_not_parsed(
    tmp_path: Path, parsed: list[bytes], tops: Sequence[str], entry: object
) -> None:
    file = archive(tmp_path / "it.tar", [tops[0]], [tops[0], *numbered(MANY)], entry)
    with (
        pytest.raises(BackupError, match="names more files than it holds"),
        open_archive(file, "Refused.", tops),
    ):
        pass
    assert not parsed


@KINDS
def test_short_names_that_fit_into_the_bytes_are_counted(
    tmp_path: Path, parsed: list[bytes], tops: Sequence[str]
) -> None:
    held = [tops[0], *numbered(500)]
    named = [f"{number:x}" for number in range(10_000)]
    with (
        pytest.raises(BackupError, match="names more files than it holds"),
        open_archive(archive(tmp_path / "it.tar", held, named, 0), "Refused.", tops),
    ):
        pass
    assert not parsed


def test_what_follows_too_many_files_is_not_read(
    tmp_path: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MOST_FILES["run.jsonl"]
    held = ["run.jsonl", *numbered(MANY // 10)]
    read: list[str] = []
    unpack = tarfile.TarInfo._proc_member  # type: ignore[attr-defined]

    def counted(entry: tarfile.TarInfo, file: tarfile.TarFile) -> tarfile.TarInfo:
        read.append(entry.name)
        return unpack(entry, file)

    file = archive(tmp_path / "it.tar", held, held, 0)
    monkeypatch.setattr(tarfile.TarInfo, "_proc_member", counted)
    with (
        pytest.raises(BackupError, match=f"more than {most:,} files"),
        open_archive(file, "Refused.", OF_ONE_RUN),
    ):
        pass
    assert len(read) <= most + 2 and not parsed


def test_no_archive_is_written_that_would_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writing.MOST_FILES, "run.jsonl", 3)
    (source := tmp_path / "empty").touch()
    names = ["run.jsonl", *numbered(3)]
    files = [SourceFile(name, source, 0) for name in names]

    def write(count: int) -> Path:
        target = tmp_path / f"{count}.tar"
        write_archive(target, files[:count], writing.silent, weights=False, checkpoints=False)
        return target

    with open_archive(write(3), "Refused.", OF_ONE_RUN) as whole:
        assert [*whole.manifest.files] == names[:3]
    with pytest.raises(BackupError, match="4 files; up to 3"):
        write(4)
    assert not (tmp_path / "4.tar").exists()


def test_names_of_any_letters_are_within_the_bounds(tmp_path: Path) -> None:
    (source := tmp_path / "empty").touch()
    odd = ['"' * 200, ":" * 200, "\\" * 200, "\x01" * 200, "é" * 100, "\U0001f600" * 60]
    names = ["run.jsonl", *(f"artifacts/{name}{i}" for name in odd for i in range(100))]
    files = [SourceFile(name, source, 0) for name in names]
    target = tmp_path / "it.tar"
    write_archive(target, files, writing.silent, weights=False, checkpoints=False)
    with open_archive(target, "Refused.", OF_ONE_RUN) as whole:
        assert {*whole.manifest.files} == {*names}
