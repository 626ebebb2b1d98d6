"""Readers of completely written files reject a damaged file."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from backend.backup.databases import replace_database
from backend.backup.reading import restore_backup
from backend.backup.single import export_run, import_run
from backend.backup.writing import write_backup
from backend.checkpoints import Checkpoints
from backend.errors import BackupError
from backend.queue.artifacts import ArtifactStore, run_folder
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store import queries
from backend.store.copies import copy_database
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job
from tests.queue.conftest import HOST

CONTENT = b"0123456789" * 500
Move = Callable[[Path], None]


class Written:
    """A written file and its reader, which raises an error or returns None if the file is
    damaged."""

    def __init__(self, folder: Path, move_to: Move) -> None:
        self.folder, self.move_to = folder, move_to
        job = enqueue("count", {"steps": 1}, HOST)
        with writing() as session:
            session.get_one(Job, job.id).state = State.CANCELLED
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
