"""Cache of model folders that are downloaded or converted once and shared by all jobs, and of what
has been read of files once."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from filelock import FileLock

from backend.checkpoints import MANIFEST, Checkpoints, changed_file
from backend.errors import ModelError
from backend.models.sources.headers import read_json
from backend.printable import readable_bytes
from backend.settings import settings

SOURCE = "SOURCE.json"
MOST_KEPT = 256  # files and folders of which it is kept what was read
UNKNOWN = "see the file"  # a license
Say = Callable[[str], None]


def silent(line: str) -> None:
    """A `Say` that discards the message."""


@dataclass(frozen=True)
class CacheOrigin:
    """Origin of a prepared folder, stored beside the weights as SOURCE.json.

    Attributes:
        note: what is known of weights that were rounded before.
        bytes: of the file it was converted from; 0: it was copied as it is.
        base_model: id on the Hub of what that file was made of.
    """

    title: str
    note: str
    origin: str
    license: str
    bytes: int = 0
    base_model: str = ""

    def write(self, folder: Path) -> None:
        (folder / SOURCE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "CacheOrigin | None":
        """The origin stored in `folder`, None if there is none."""
        try:
            entries = read_json(folder / SOURCE)
            size = entries.pop("bytes", 0)
            valid = isinstance(size, int) and all(isinstance(x, str) for x in entries.values())
            return cls(**entries, bytes=size) if valid else None
        except (ModelError, TypeError):
            return None


def prepared(name: str) -> Path | None:
    """The prepared folder `name`, or None; it is complete, since it is renamed into place."""
    folder = _root() / name
    return folder if (folder / MANIFEST).is_file() else None


def prepare_once(name: str, space: int, fill: Callable[[Path], None]) -> Path:
    """The prepared folder `name`, filled by `fill` if it does not exist.

    A file lock ensures that concurrent processes prepare it once: the others wait. Raises
    ModelError: less than `space` bytes are free on the disk."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not (folder := prepared(name)):
            if (free := shutil.disk_usage(root).free) < space:
                raise ModelError(
                    f"There is not enough disk space for the model in {root}.",
                    f"It needs {readable_bytes(space)}; {readable_bytes(free)} are free.",
                    "Free disk space, or set SLIMSCOPE_CACHE_DIR to another disk.",
                    field="model",
                )
            with Checkpoints(root).write(name) as draft:
                fill(draft)
            folder = root / name
    return folder


def damaged_folders() -> list[Path]:
    """Prepared folders with a file that is missing or of another size than in its manifest."""
    manifests = sorted(_root().glob(f"*/{MANIFEST}"))
    return [file.parent for file in manifests if changed_file(file.parent, contents=False)]


def kept(path: Path, identity: Sequence[Any], read: Callable[[], Any]) -> Any:
    """The JSON value that `read` makes of a file or folder, once for all processes while its
    `identity` is the same."""
    folder = settings().cache_dir.expanduser() / "read"
    file = folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    known = json.dumps([str(path), *identity])
    with suppress(OSError, ValueError, TypeError):
        found, value = json.loads(file.read_text())
        if found == known:
            return value
    value = read()
    with suppress(OSError):  # the disk is full or cannot be written: it is read again next time
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder, delete=False) as draft:
            json.dump([known, value], draft)
        Path(draft.name).replace(file)
        for old in sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    return value


def _root() -> Path:
    return settings().cache_dir.expanduser() / "models"
