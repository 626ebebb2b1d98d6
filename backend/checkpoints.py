"""Atomic checkpoints: folders that are either complete or absent.

A checkpoint is written into a hidden folder, every file is flushed to disk, a manifest with sizes
and sha256 is written last, and only then is the folder renamed into place. A reader accepts a
folder only if its manifest matches. A replaced checkpoint is renamed first and stays valid until
the new one is in place, so a process killed at any moment leaves the last complete checkpoint.
"""

import glob
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import psutil

from backend.errors import ConfigError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20
OWNER = "run"  # the checkpoint that identifies the run


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
    """Return True if all files of the folder's manifest exist unchanged."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text()) == _manifest_of(folder))
    except (OSError, ValueError):
        return False


def changed_file(folder: Path, *, contents: bool) -> str:
    """Return the name of a file that differs from the folder's manifest, or "" if none does or the
    folder has no manifest of ours. Edited Markdown files are accepted.

    Args:
        contents: compare sha256 sums as well as sizes. A process reads a file again only after its
            size or modification time has changed.
    """
    file = folder / MANIFEST
    if not file.is_file() or file.stat().st_size > MAX_MANIFEST_BYTES:
        return ""
    try:
        manifest = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return MANIFEST
    return next(_changes(folder, manifest, contents), "") if _is_manifest(manifest) else ""


def _changes(
    folder: Path, manifest: dict[str, dict[str, int | str]], contents: bool
) -> Iterator[str]:
    for name, expected in manifest.items():
        path = folder / name
        try:
            state = path.stat()
            same = state.st_size == expected["bytes"]
            if same and contents:
                same = _cached_sha256(path, state.st_mtime_ns, state.st_size) == expected["sha256"]
        except OSError:
            same = False
        if not same and path.suffix != ".md":
            yield name


@lru_cache(maxsize=1024)
def _cached_sha256(path: Path, modified_ns: int, size_bytes: int) -> str:
    return sha256_of(path)


def _is_manifest(content: object) -> bool:
    """Return True if `content` has the form of `_manifest_of`: other programs use the file name,
    too."""
    return isinstance(content, dict) and all(
        isinstance(entry, dict)
        and entry.keys() == {"bytes", "sha256"}
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name, entry in content.items()
    )


def _file_states(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of every file; empty if they cannot be read."""
    try:
        files = [(str(p), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    except OSError:
        return []
    return [(name, state.st_size, state.st_mtime_ns) for name, state in files]


class HeldFolder:
    """A folder handle that detects removal, even if a new folder has the same path: the inode is
    not reused while the handle is open. Creates the folder if needed."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def is_gone(self) -> bool:
        """Return True if the folder is no longer at its path."""
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return True


class Checkpoints:
    """Named checkpoints in one folder, which is created on the first write.

    Args:
        before_commit: called when a checkpoint is complete but not yet visible. A job flushes its
            buffered metrics here, so that a kill loses nothing of finished work.
        committed: called with the folder of a checkpoint that has just become visible.
        attempt: number of the only attempt that may write. Drafts of other attempts are removed as
            leftovers, whichever machine wrote them. None: processes of one machine write.
    """

    def __init__(
        self,
        root: Path,
        before_commit: Callable[[], None] = lambda: None,
        attempt: int | None = None,
        committed: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.root, self.before_commit, self._attempt = root, before_commit, attempt
        self._committed = committed
        self._verified: dict[str, list[tuple[str, int, int]]] = {}  # name -> file states

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yield an empty folder to fill; on exit it atomically becomes or replaces checkpoint
        `name`. If the body raises, nothing is left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        writer = os.getpid() if self._attempt is None else f"a{self._attempt}"
        draft, final = self.root / f".tmp-{writer}-{name}", self.root / name
        old = self._backup_path(name)
        for leftover in self.root.glob(f".tmp-*-{glob.escape(name)}"):  # by killed processes
            owner = leftover.name.split("-")[1]
            is_ours = self._attempt is not None or owner == str(os.getpid())
            if is_ours or not owner.isdecimal() or not psutil.pid_exists(int(owner)):
                shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            manifest = _manifest_of(draft)
            for file in manifest:
                _fsync(draft / file)
            (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
            mode = (
                (draft / MANIFEST).stat().st_mode
            )  # follows the umask; safetensors creates files as 0600
            for file in manifest:
                (draft / file).chmod(mode)
            _fsync(draft / MANIFEST)
            self.before_commit()
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.rename(old)
            draft.rename(final)
            _fsync(self.root)
            self._verified[name] = _file_states(final)
            shutil.rmtree(old, ignore_errors=True)
            self._committed(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _backup_path(self, name: str) -> Path:
        """Return the path of a checkpoint while it is being replaced."""
        return self.root / f".old-{name}"

    def newest(self) -> str | None:
        """Return the name of the most recent complete checkpoint, or None."""
        folders = [path for path in self.root.glob("[!.]*") if path.name != OWNER]
        folders.sort(key=lambda path: -path.stat().st_mtime)
        return next((path.name for path in folders if is_whole(path)), None)

    def find(self, name: str) -> Path | None:
        """Return the folder of checkpoint `name` if it is complete, or None. Files are read in full
        the first time, unless written by this object, and after a change of size or time."""
        folder = self.root / name
        if not folder.exists():  # a process was killed while replacing it
            folder = self._backup_path(name)
        states = _file_states(folder)
        if self._verified.get(name) != states or not states:
            if not is_whole(folder):
                return None
            self._verified[name] = states
        return folder

    def settled(self) -> str:
        """Return the settled value of the first call of `claim`; empty if there was none."""
        folder = self.find(OWNER)
        return str(json.loads((folder / "run.json").read_text())["settled"]) if folder else ""

    def claim(self, identity: str, settled: str) -> str:
        """Bind all checkpoints to `identity` and return the `settled` value of the first call.

        Machine-dependent choices such as the precision are made once, so that a run resumed on
        another machine continues unchanged. `ConfigError` if the folder belongs to another run.
        """
        if folder := self.find(OWNER):
            owner = json.loads((folder / "run.json").read_text())
            if owner["identity"] != identity:
                raise ConfigError(
                    "This folder holds another run.",
                    "Its model, texts or config differ.",
                    "Load the dense model again to resume, or choose an empty folder.",
                )
            return str(owner["settled"])
        with self.write(OWNER) as draft:
            (draft / "run.json").write_text(json.dumps({"identity": identity, "settled": settled}))
        return settled
