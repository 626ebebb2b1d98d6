"""Folders that are either whole or absent.

A checkpoint is written into a hidden folder, every file is flushed to disk, a manifest with sizes
and sha256 is written last, and only then is the folder renamed into place. A reader accepts a
folder only when its manifest matches. One that is replaced steps aside first and counts until the
new one is in its place, so a process killed at any moment leaves the last whole checkpoint.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from backend.errors import ConfigError

MANIFEST = "manifest.json"
OWNER = "run"  # the checkpoint that says whose the others are


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_of(folder: Path) -> dict[str, dict[str, int | str]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in files
    }


def is_whole(folder: Path) -> bool:
    """Whether every file named in the folder's manifest is there, unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest == _manifest_of(folder))
    except (OSError, ValueError):
        return False


def _looks(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file; empty when they cannot be seen."""
    try:
        files = [(str(p), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    except OSError:
        return []
    return [(name, state.st_size, state.st_mtime_ns) for name, state in files]


class Checkpoints:
    """The named checkpoints under one folder.

    Args:
        root: the folder; made when first written to.
        before_commit: called when a checkpoint is complete but not yet visible. A job writes its
            buffered figures here, so that no figure of finished work can be missing after a kill.
    """

    def __init__(self, root: Path, before_commit: Callable[[], None] = lambda: None) -> None:
        self.root, self.before_commit = root, before_commit
        self._found: dict[str, list[tuple[str, int, int]]] = {}  # whole ones, as they looked

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yields an empty folder to fill; on leaving it becomes checkpoint `name`, whole, at once.

        A checkpoint of that name is replaced. When the body raises, nothing is left behind.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        draft, final = self.root / f".tmp-{os.getpid()}-{name}", self.root / name
        old = self._aside(name)
        self._sweep(name)
        draft.mkdir()
        try:
            yield draft
            manifest = _manifest_of(draft)
            for file in manifest:
                _fsync(draft / file)
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
            _fsync(draft / MANIFEST)
            self.before_commit()
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            draft.rename(final)
            _fsync(self.root)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _aside(self, name: str) -> Path:
        """Where a checkpoint waits while the one that replaces it is put in its place."""
        return self.root / f".old-{name}"

    def _sweep(self, name: str) -> None:
        """Removes drafts of `name` whose process was killed."""
        for old in self.root.glob(f".tmp-*-{glob.escape(name)}"):
            pid = int(old.name.split("-")[1])
            if pid == os.getpid() or not psutil.pid_exists(pid):
                shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> str | None:
        """The name of the checkpoint written last, if any is whole."""
        folders = sorted(self.root.glob("[!.]*"), key=lambda path: -path.stat().st_mtime)
        return next((path.name for path in folders if is_whole(path)), None)

    def find(self, name: str) -> Path | None:
        """The folder of checkpoint `name` if it is there and whole, else None.

        Files are read in full the first time, and again when their size or time has changed.
        """
        folder = self.root / name
        if not folder.exists():  # a process was killed just as it replaced it
            folder = self._aside(name)
        looks = _looks(folder)
        if self._found.get(name) != looks or not looks:
            if not is_whole(folder):
                return None
            self._found[name] = looks
        return folder

    def claim(self, identity: str, settled: str) -> str:
        """Ties all checkpoints to `identity` and returns what was settled by the first to do so.

        What a run chooses by the machine it is on, such as a precision, is settled once: a run
        resumed elsewhere goes on as it began.

        Raises:
            ConfigError: the checkpoints belong to another run.
        """
        if folder := self.find(OWNER):
            owner = json.loads((folder / "run.json").read_text())
            if owner["identity"] != identity:
                raise ConfigError(
                    "This folder holds another run.",
                    "Its model, texts or config differ.",
                    "Load the dense model anew to resume, or choose an empty folder.",
                )
            return str(owner["settled"])
        with self.write(OWNER) as draft:
            text = json.dumps({"identity": identity, "settled": settled})
            (draft / "run.json").write_text(text)
        return settled
