"""Files of a run: paths, log, and the artifact store that all machines share.

artifacts/sds-0042/            the run's folder
    a1/log.txt                 output of attempt 1
    work/                      checkpoints, shared by all attempts, one writer at a time
    model/                     the saved model

The store can be anything fsspec has a URL for. Each machine works on local copies, so that a full
or slow store stops nothing. A folder in the store is complete if it has a manifest, which is
removed first and written last.
"""

import codecs
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from backend.checkpoints import MANIFEST, is_whole
from backend.settings import settings

TAIL_BYTES = 64_000
COPY_TRIES = 3
log = logging.getLogger("slimscope.store")
ATTEMPT_FILE = ".attempt"  # file with the number of the last attempt on this machine


def run_folder(run: str) -> Path:
    """The folder of a run."""
    return settings().artifacts / run


def log_file(run: str, attempt: int) -> Path:
    """The log file of an attempt."""
    return run_folder(run) / f"a{attempt}" / "log.txt"


def work_folder(run: str) -> Path:
    """The checkpoint folder of a run."""
    return run_folder(run) / "work"


def delete_folder(folder: Path) -> None:
    """Delete a folder below the artifact folder, ignoring errors.

    A folder elsewhere, to which a damaged row or a link may lead, is not deleted."""
    if folder.parent.resolve().is_relative_to(settings().artifacts.resolve()):
        shutil.rmtree(folder, ignore_errors=True)


def full_log(run: str, attempts: int) -> bytes:
    """The concatenated logs of all attempts of a run, each with a header line."""
    files = ((n, log_file(run, n)) for n in range(1, attempts + 1))
    return b"".join(
        f"===== attempt {n} =====\n".encode() + file.read_bytes()
        for n, file in files
        if file.is_file()
    )


def read_log(
    run: str, attempt: int, after: int | None = None, most: int | None = None
) -> tuple[str, int, int]:
    """Part of the log of an attempt.

    Args:
        after: offset of the first byte; None for the tail of the log.
        most: maximum number of bytes, counted from the end; None for no limit.

    Returns:
        Text up to the last complete character (invalid bytes replaced), and its start and end
            offset in bytes; ("", 0, 0) without a log.
    """
    path = log_file(run, attempt)
    if not path.exists():
        return "", 0, 0
    size = path.stat().st_size
    start = max(0, size - TAIL_BYTES) if after is None else min(max(0, after), size)
    if most is not None:
        start = max(start, size - most)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    pending, _ = decoder.getstate()
    return text, start, start + len(data) - len(pending)


@contextmanager
def store_errors() -> Iterator[None]:
    """Context that raises `OSError` for every error of the store, as file systems of fsspec have
    further types of errors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"The artifact store does not answer: {error}") from error


class ArtifactStore:
    """Folders and files below a URL.

    Keys are paths relative to the artifact folder. Methods raise the errors of the file system if
    it does not answer; see `store_errors`."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # imported here: a single machine does not need it

        system, root = url_to_fs(url, use_listings_cache=False)  # other machines write, too
        self._system: Any = system
        self._root = root.rstrip("/")

    def _path_of(self, key: str) -> str:
        return f"{self._root}/{key}"

    def put_folder(self, folder: Path, key: str) -> bool:
        """Store a folder with a manifest; return False if it was replaced meanwhile."""
        manifest = (folder / MANIFEST).read_bytes()
        if self.manifest(key) == manifest:
            return True
        self.remove(f"{key}/{MANIFEST}")
        for name in json.loads(manifest):
            self.put_file(folder / name, f"{key}/{name}")
        if (folder / MANIFEST).read_bytes() != manifest:
            return False
        self.write(f"{key}/{MANIFEST}", manifest)
        if self.manifest(key) != manifest:
            raise OSError(f"{key} was not stored completely.")
        return True

    def put_file(self, file: Path, key: str) -> None:
        """Store a file.

        Raises:
            OSError: the store holds fewer bytes than the file.
        """
        self._make_parent(key)
        size = file.stat().st_size  # read first, as a log grows
        self._system.put_file(str(file), self._path_of(key))
        if (self.size(key) or 0) < size:
            raise OSError(f"{key} was not stored completely.")

    def write(self, key: str, content: bytes) -> None:
        """Store a file with this content."""
        self._make_parent(key)
        self._system.pipe_file(self._path_of(key), content)

    def _make_parent(self, key: str) -> None:
        self._system.makedirs(self._path_of(key).rpartition("/")[0], exist_ok=True)

    def manifest(self, key: str) -> bytes | None:
        """The manifest of a complete folder; None if it is missing or truncated."""
        manifest = self.read(f"{key}/{MANIFEST}")
        try:
            return manifest if manifest and json.loads(manifest) is not None else None
        except ValueError:
            return None

    def read(self, key: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        try:
            return bytes(self._system.cat_file(self._path_of(key)))
        except FileNotFoundError:
            return None

    def get_folder(self, key: str, folder: Path) -> bool:
        """Copy a complete folder from the store; return True if the local folder is up to date."""
        manifest = self.manifest(key)
        if manifest is None:
            return False
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest:
            return True
        draft = folder.with_name(f".get-{uuid4().hex[:8]}-{folder.name}")
        try:
            for _ in range(COPY_TRIES):  # a transfer may have been cut off
                for name in json.loads(manifest):
                    self.get_file(f"{key}/{name}", draft / name)
                draft.mkdir(parents=True, exist_ok=True)
                (draft / MANIFEST).write_bytes(manifest)
                if is_whole(draft):
                    break
            else:  # it was replaced meanwhile, or is damaged in the store
                return False
            with suppress(NotImplementedError):  # the newest checkpoint is found by its time
                modified_at = self._system.modified(self._path_of(f"{key}/{MANIFEST}")).timestamp()
                os.utime(draft, (modified_at, modified_at))
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def get_file(self, key: str, file: Path) -> None:
        """Copy a file from the store."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(self._path_of(key), str(file))

    def size(self, key: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""
        try:
            return int(self._system.info(self._path_of(key))["size"])
        except FileNotFoundError:
            return None

    def names(self, key: str) -> list[str]:
        """The content of a folder: names of files, and names of folders with a final slash."""
        try:
            entries = self._system.ls(self._path_of(key), detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] + "/" * (entry["type"] == "directory")
            for entry in entries
        )

    def remove(self, key: str) -> None:
        """Delete a folder or a file if it exists."""
        if self._system.exists(self._path_of(key)):
            self._system.rm(self._path_of(key), recursive=True)


def store() -> ArtifactStore | None:
    """The store of the settings; None if there is only the artifact folder."""
    url = settings().artifact_store
    return _open_store(url) if url else None


def store_or_folder() -> ArtifactStore:
    """The store of the settings, or else the artifact folder as a store."""
    return store() or ArtifactStore(str(settings().artifacts))


@lru_cache(maxsize=1)
def _open_store(url: str) -> ArtifactStore:
    return ArtifactStore(url)


def key_of(path: Path) -> str:
    """The key of a path below the artifact folder."""
    return path.relative_to(settings().artifacts).as_posix()


@store_errors()
def present(folder: Path) -> Path:
    """The saved folder of a run, copied from the store if it is missing on this machine."""
    shared = store()
    if shared is not None and not (folder / MANIFEST).is_file():
        shared.get_folder(key_of(folder), folder)
    return folder


@store_errors()
def fetch_work(run: str, attempt: int, loose: str) -> None:
    """Copy the checkpoints of the previous attempt, unless it ran on this machine, whose files may
    be newer.

    Args:
        attempt: number of the attempt that is about to begin.
        loose: name of a file next to the checkpoints that is copied, too.
    """
    if (shared := store()) is None:
        return
    work = work_folder(run)
    attempt_file = work / ATTEMPT_FILE
    was_here = attempt_file.exists() and attempt_file.read_text() == str(attempt - 1)
    work.mkdir(parents=True, exist_ok=True)
    for name in () if was_here else shared.names(key_of(work)):
        if name == loose:
            shared.get_file(key_of(work / loose), work / loose)
        elif name.endswith("/") and not name.startswith("."):
            shared.get_folder(key_of(work / name), work / name.rstrip("/"))
    attempt_file.write_text(str(attempt))


@store_errors()
def fetch_ended(run: str) -> None:
    """Copy all files of an ended run except its checkpoints, so that pages can show them."""
    if (shared := store()) is None:
        return
    folder, work = run_folder(run), f"{work_folder(run).name}/"
    for name in shared.names(run):
        if name != work:
            _fetch_path(shared, folder / name.rstrip("/"), is_folder=name.endswith("/"))


def _fetch_path(shared: ArtifactStore, path: Path, is_folder: bool) -> None:
    key = key_of(path)
    if not is_folder:
        if not path.exists() or path.stat().st_size != shared.size(key):
            shared.get_file(key, path)
    elif not shared.get_folder(key, path):
        for name in shared.names(key):
            _fetch_path(shared, path / name.rstrip("/"), is_folder=name.endswith("/"))


@store_errors()
def fetch_log(run: str, attempt: int) -> None:
    """Copy the log of a live attempt if it has grown."""
    if (shared := store()) is None:
        return
    file = log_file(run, attempt)
    size = shared.size(key_of(file))
    if size is not None and size > (file.stat().st_size if file.exists() else 0):
        shared.get_file(key_of(file), file)


def remove_stored(path: Path) -> None:
    """Delete a path from the store after it was deleted here; log a warning if that fails."""
    if (shared := store()) is None:
        return
    try:
        with store_errors():
            shared.remove(key_of(path))
    except OSError as error:
        log.warning("%s stays in the store: %s", key_of(path), error)
