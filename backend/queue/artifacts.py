"""The files of a run: their paths, its log, and the artifact store that all machines reach.

artifacts/sds-0042/            the run's folder
    a1/log.txt                 output of attempt 1
    work/                      checkpoints, shared by all attempts, one writer at a time
    model/                     the saved model

The store is anything fsspec has a URL for. Each machine works on copies of its own, so that a store
that is full or slow stops nothing. A folder is complete where its manifest is: that is removed
first and written last.
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
TRIES = 3  # of copying a folder here
log = logging.getLogger("slimscope.store")
WORKED_HERE = ".attempt"  # number of the last attempt on this machine, beside its checkpoints


def run_folder(run: str) -> Path:
    return settings().artifacts / run


def log_file(run: str, attempt: int) -> Path:
    return run_folder(run) / f"a{attempt}" / "log.txt"


def work_folder(run: str) -> Path:
    """The checkpoint folder of a run."""
    return run_folder(run) / "work"


def delete_folder(folder: Path) -> None:
    """Delete a folder below that of the artifacts, as far as that is possible. One that lies
    elsewhere stays, whatever a row of the database or a link says."""
    if folder.parent.resolve().is_relative_to(settings().artifacts.resolve()):
        shutil.rmtree(folder, ignore_errors=True)


def whole_log(run: str, attempts: int) -> bytes:
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
    """The log of an attempt from byte `after` on (None: its tail), at most its last `most` bytes.

    Returns:
        Text up to the last complete character (invalid bytes replaced), its start offset and its
            end offset in bytes; ("", 0, 0) without a log.
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
def reaching() -> Iterator[None]:
    """Raise `OSError` for every error of a file system; some have errors of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"The artifact store does not answer: {error}") from error


class ArtifactStore:
    """Folders and files below a URL, by the paths they have below the folder of the artifacts. All
    methods raise what the file system does when it does not answer; see `reaching`."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # here: one machine needs none

        system, root = url_to_fs(url, use_listings_cache=False)  # other machines write, too
        self._system: Any = system
        self._root = root.rstrip("/")

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def put_folder(self, folder: Path, key: str) -> bool:
        """Store a folder with a manifest; False if it was replaced meanwhile."""
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
            raise OSError(f"{key} was not stored as a whole.")
        return True

    def put_file(self, file: Path, key: str) -> None:
        """Store a file; `OSError` if the store has kept less than was there."""
        self._make_parent(key)
        size = file.stat().st_size  # a log grows
        self._system.put_file(str(file), self._at(key))
        if (self.size(key) or 0) < size:
            raise OSError(f"{key} was not stored as a whole.")

    def write(self, key: str, content: bytes) -> None:
        self._make_parent(key)
        self._system.pipe_file(self._at(key), content)

    def _make_parent(self, key: str) -> None:
        self._system.makedirs(self._at(key).rpartition("/")[0], exist_ok=True)

    def manifest(self, key: str) -> bytes | None:
        """The manifest of a folder that is complete; None without one, or with a part of one."""
        found = self.read(f"{key}/{MANIFEST}")
        try:
            return found if found and json.loads(found) is not None else None
        except ValueError:
            return None

    def read(self, key: str) -> bytes | None:
        try:
            return bytes(self._system.cat_file(self._at(key)))
        except FileNotFoundError:
            return None

    def get_folder(self, key: str, folder: Path) -> bool:
        """Copy a complete folder here, unless it is here already; return whether it is now."""
        manifest = self.manifest(key)
        if manifest is None:
            return False
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == manifest:
            return True
        draft = folder.with_name(f".get-{uuid4().hex[:8]}-{folder.name}")
        try:
            for _ in range(TRIES):  # what came may have been cut off
                for name in json.loads(manifest):
                    self.get_file(f"{key}/{name}", draft / name)
                draft.mkdir(parents=True, exist_ok=True)
                (draft / MANIFEST).write_bytes(manifest)
                if is_whole(draft):
                    break
            else:  # it was replaced meanwhile, or is damaged there
                return False
            with suppress(NotImplementedError):  # the newest is told by its time
                moment = self._system.modified(self._at(f"{key}/{MANIFEST}")).timestamp()
                os.utime(draft, (moment, moment))
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def get_file(self, key: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(self._at(key), str(file))

    def size(self, key: str) -> int | None:
        try:
            return int(self._system.info(self._at(key))["size"])
        except FileNotFoundError:
            return None

    def names(self, key: str) -> list[str]:
        """What a folder holds: names of files, and of folders with a slash behind them."""
        try:
            entries = self._system.ls(self._at(key), detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            each["name"].rstrip("/").rpartition("/")[2] + "/" * (each["type"] == "directory")
            for each in entries
        )

    def remove(self, key: str) -> None:
        """Delete a folder or a file, if it is there."""
        if self._system.exists(self._at(key)):
            self._system.rm(self._at(key), recursive=True)


def store() -> ArtifactStore | None:
    """The store that is set; None where the folder of the artifacts is all there is."""
    url = settings().artifact_store
    return _opened(url) if url else None


def store_or_folder() -> ArtifactStore:
    """The store, or else the folder of the artifacts as one."""
    return store() or ArtifactStore(str(settings().artifacts))


@lru_cache(maxsize=1)
def _opened(url: str) -> ArtifactStore:
    return ArtifactStore(url)


def key_of(path: Path) -> str:
    """What the store calls a path below the folder of the artifacts."""
    return path.relative_to(settings().artifacts).as_posix()


@reaching()
def present(folder: Path) -> Path:
    """A folder that a run has saved, on this machine: copied here if it is not."""
    kept = store()
    if kept is not None and not (folder / MANIFEST).is_file():
        kept.get_folder(key_of(folder), folder)
    return folder


@reaching()
def fetch_work(run: str, attempt: int, loose: str) -> None:
    """Copy the checkpoints of a run that an attempt on another machine has left, and the file
    `loose` beside them, for the next `attempt`. Those of this machine may be newer."""
    if (kept := store()) is None:
        return
    work = work_folder(run)
    last, work_file = str(attempt - 1), work / WORKED_HERE
    was_here = work_file.exists() and work_file.read_text() == last
    work.mkdir(parents=True, exist_ok=True)
    for name in () if was_here else kept.names(key_of(work)):
        if name == loose:
            kept.get_file(key_of(work / loose), work / loose)
        elif name.endswith("/") and not name.startswith("."):
            kept.get_folder(key_of(work / name), work / name.rstrip("/"))
    work_file.write_text(str(attempt))


@reaching()
def fetch_ended(run: str) -> None:
    """Copy what a run has left, but for its checkpoints: pages show it from here."""
    if (kept := store()) is None:
        return
    folder, own = run_folder(run), f"{work_folder(run).name}/"
    for name in kept.names(run):
        if name != own:
            _fetch(kept, folder / name.rstrip("/"), is_folder=name.endswith("/"))


def _fetch(kept: ArtifactStore, path: Path, is_folder: bool) -> None:
    key = key_of(path)
    if not is_folder:
        if not path.exists() or path.stat().st_size != kept.size(key):
            kept.get_file(key, path)
    elif not kept.get_folder(key, path):
        for name in kept.names(key):
            _fetch(kept, path / name.rstrip("/"), is_folder=name.endswith("/"))


@reaching()
def fetch_log(run: str, attempt: int) -> None:
    """Copy the log of an attempt at work, if it has grown."""
    if (kept := store()) is None:
        return
    file = log_file(run, attempt)
    size = kept.size(key_of(file))
    if size is not None and size > (file.stat().st_size if file.exists() else 0):
        kept.get_file(key_of(file), file)


def remove_stored(path: Path) -> None:
    """Delete from the store what was deleted here. Where it does not answer, that is left there."""
    if (kept := store()) is None:
        return
    try:
        with reaching():
            kept.remove(key_of(path))
    except OSError as error:
        log.warning("%s stays in the store: %s", key_of(path), error)
