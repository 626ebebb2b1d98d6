"""Archives and daily copies that are damaged, and archives that lie in their manifest."""

import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend.backup import reading, writing
from backend.backup.databases import replace_database
from backend.backup.reading import open_archive, restore_backup
from backend.backup.single import export_run, import_run
from backend.backup.writing import (
    BACKUP_ENTRIES,
    MAX_FILES,
    RUN_FILE_ENTRIES,
    SourceFile,
    write_archive,
    write_backup,
)
from backend.checkpoints import Checkpoints
from backend.errors import BackupError
from backend.queue.artifacts import ArtifactStore, run_folder
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store import queries
from backend.store.copies import copy_database
from backend.store.states import State
from backend.store.tables import Job
from tests.backup.conftest import write_tar
from tests.queue.conftest import HOST, change

CONTENT = b"0123456789" * 500
Move = Callable[[Path], None]


class Written:
    """A written file and its reader, which raises an error or returns None if the file is
    damaged."""

    def __init__(self, folder: Path, move_to: Move) -> None:
        self.folder, self.move_to = folder, move_to
        job = enqueue("count", {"steps": 1}, HOST)
        change(Job, job.id, state=State.CANCELLED)
        self.file = run_folder(job.run) / "kept" / "data.txt"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(CONTENT)
        self.run = job.run

    def checkpoint(self) -> tuple[Path, Callable[[], object]]:
        checkpoints = Checkpoints(self.folder / "work")
        with checkpoints.write("one") as draft:
            (draft / "data.txt").write_bytes(CONTENT)
        return self.folder / "work" / "one" / "data.txt", lambda: checkpoints.find("one")

    def stored_artifact(self) -> tuple[Path, Callable[[], object]]:
        self.checkpoint()
        store = ArtifactStore(f"file://{self.folder}/store")
        assert store.put_folder(self.folder / "work" / "one", "one")
        there = self.folder / "there"
        stored = self.folder / "store" / "one" / "data.txt"
        return stored, lambda: store.get_folder("one", there) or None

    def backup(self) -> tuple[Path, Callable[[], object]]:
        file = self.folder / "all.tar"
        write_backup(file)
        self.move_to(self.folder / "other")
        return file, lambda: restore_backup(file)

    def run_file(self) -> tuple[Path, Callable[[], object]]:
        file = self.folder / "one.tar"
        export_run(self.run, file)
        return file, lambda: import_run(file, HOST, lambda kind, row: None)

    def daily_copy(self) -> tuple[Path, Callable[[], object]]:
        file = self.folder / "copy.db"
        copy_database(file)
        return file, lambda: replace_database(file)


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    place = data.find(CONTENT)
    data[100 if place < 0 else place + 40] ^= 0xFF  # 100: the first page of a database
    file.write_bytes(data)


def truncated(file: Path) -> None:
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size // 4)  # a tar file ends with zeros


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def replaced(file: Path) -> None:
    file.write_bytes(b"something else" * 999)


READERS = ("checkpoint", "stored_artifact", "backup", "run_file", "daily_copy")
HARMS = (flipped, truncated, emptied, replaced, Path.unlink)


pytestmark = pytest.mark.sqlite("backups and daily copies are of a file")


@pytest.mark.parametrize("reader", READERS)
def test_what_is_whole_is_read(queue: Path, tmp_path: Path, move_to: Move, reader: str) -> None:
    _, read = getattr(Written(tmp_path, move_to), reader)()
    assert read() is not None


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("reader", READERS)
def test_of_a_damaged_file_nothing_is_used(
    queue: Path, tmp_path: Path, move_to: Move, reader: str, harm: Callable[[Path], None]
) -> None:
    file, read = getattr(Written(tmp_path, move_to), reader)()
    before = [job.run for job in queries.jobs()] if reader != "backup" else []
    harm(file)
    found = None
    with suppress(BackupError, OSError):
        found = read()
    assert found is None and not (tmp_path / "there").exists()
    if reader == "backup":
        assert [*settings().root.iterdir()] == []
    else:
        assert [job.run for job in queries.jobs()] == before


# manifests ----------------------------------------------------------------------------------------


MANY = 200_000
KINDS = pytest.mark.parametrize("tops", [BACKUP_ENTRIES, RUN_FILE_ENTRIES], ids=["backup", "run"])


def numbered(count: int) -> list[str]:
    return [f"artifacts/count-0001/{number}" for number in range(count)]


def short(count: int) -> list[str]:
    return [f"{number:x}" for number in range(count // 20)]


def archive(target: Path, held: Iterable[str], named: Iterable[str], entry: object) -> Path:
    """Write an archive of empty files whose manifest lists further files."""
    return write_tar(target, ((name, b"") for name in held), dict.fromkeys(named, entry))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The manifests parsed so far."""
    texts: list[bytes] = []
    monkeypatch.setattr(
        reading, "Manifest", SimpleNamespace(model_validate_json=lambda text: texts.append(text))
    )
    return texts


@KINDS
@pytest.mark.parametrize(
    ("held", "named", "entry"),
    [
        (0, numbered, 0),
        (0, numbered, {"bytes": 0, "sha256": "0" * 64}),
        (500, short, 0),  # they fit into the bytes
    ],
    ids=["bad", "good", "short"],
)
def test_a_manifest_of_many_names_is_not_parsed(
    tmp_path: Path,
    parsed: list[bytes],
    tops: Sequence[str],
    held: int,
    named: Callable[[int], list[str]],
    entry: object,
) -> None:
    files = [tops[0], *numbered(held)]
    file = archive(tmp_path / "it.tar", files, [tops[0], *named(MANY)], entry)
    with (
        pytest.raises(BackupError, match="names more files than it holds"),
        open_archive(file, "Refused.", tops),
    ):
        pass
    assert not parsed


def test_what_follows_too_many_files_is_not_read(
    tmp_path: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MAX_FILES["run.jsonl"]
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
        open_archive(file, "Refused.", RUN_FILE_ENTRIES),
    ):
        pass
    assert len(read) <= most + 2 and not parsed


def test_no_archive_is_written_that_would_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writing.MAX_FILES, "run.jsonl", 3)
    (source := tmp_path / "empty").touch()
    names = ["run.jsonl", *numbered(3)]
    files = [SourceFile(name, source, 0) for name in names]

    def write(count: int) -> Path:
        target = tmp_path / f"{count}.tar"
        write_archive(target, files[:count], writing.silent, weights=False, checkpoints=False)
        return target

    with open_archive(write(3), "Refused.", RUN_FILE_ENTRIES) as whole:
        assert [*whole.manifest.files] == names[:3]
    with pytest.raises(BackupError, match="4 files; the limit is 3"):
        write(4)
    assert not (tmp_path / "4.tar").exists()


def test_names_of_any_letters_are_within_the_bounds(tmp_path: Path) -> None:
    (source := tmp_path / "empty").touch()
    odd = ['"' * 200, ":" * 200, "\\" * 200, "\x01" * 200, "é" * 100, "\U0001f600" * 60]
    names = ["run.jsonl", *(f"artifacts/{name}{i}" for name in odd for i in range(100))]
    files = [SourceFile(name, source, 0) for name in names]
    target = tmp_path / "it.tar"
    write_archive(target, files, writing.silent, weights=False, checkpoints=False)
    with open_archive(target, "Refused.", RUN_FILE_ENTRIES) as whole:
        assert {*whole.manifest.files} == {*names}
