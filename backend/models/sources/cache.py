"""Cache of prepared model folders, which are downloaded or converted once and shared by all jobs,
and of values read from model files."""

import hashlib
import json
import os
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
MAX_CACHED_VALUES = 256
UNKNOWN = "see the file"  # an unknown license
Say = Callable[[str], None]


def silent(line: str) -> None:
    """Ignore the message."""


@dataclass(frozen=True)
class CacheOrigin:
    """Origin of a prepared folder, stored next to the weights as SOURCE.json.

    Attributes:
        title: title of the model.
        note: a caveat on weights that were already rounded; may be empty.
        origin: source of the weights.
        license: license of the weights.
        bytes: size of the converted file; 0 for a plain copy.
        base_model: Hub id of the model that the converted file was made from; may be empty.
    """

    title: str
    note: str
    origin: str
    license: str
    bytes: int = 0
    base_model: str = ""

    def write(self, folder: Path) -> None:
        """Store the origin in `folder`."""
        (folder / SOURCE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "CacheOrigin | None":
        """Return the origin stored in `folder`, or None if it is missing or invalid."""
        try:
            entries = read_json(folder / SOURCE)
            size = entries.pop("bytes", 0)
            if "licence" in entries:  # a folder prepared before the key was renamed
                entries["license"] = entries.pop("licence")
                entries["note"] = entries["note"].replace("dequantised", "dequantized")
            is_valid = isinstance(size, int) and all(isinstance(x, str) for x in entries.values())
            return cls(**entries, bytes=size) if is_valid else None
        except (ModelError, TypeError, KeyError, AttributeError):
            return None


def prepared(name: str) -> Path | None:
    """Return the prepared folder `name`, or None. It is complete, because it is renamed into
    place."""
    folder = _root() / name
    return folder if (folder / MANIFEST).is_file() else None


def prepare_once(name: str, needed_bytes: int, fill: Callable[[Path], None]) -> Path:
    """Return the prepared folder `name`, calling `fill` to create it if it does not exist.

    A file lock lets only one process prepare the folder, while others wait. Raises ModelError:
    fewer than `needed_bytes` are free on the disk."""
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not (folder := prepared(name)):
            free_bytes = shutil.disk_usage(root).free
            if free_bytes < needed_bytes:
                raise ModelError(
                    f"There is not enough disk space for the model in {root}.",
                    f"It needs {readable_bytes(needed_bytes)}; "
                    f"{readable_bytes(free_bytes)} are free.",
                    "Free disk space, or set SLIMSCOPE_CACHE_DIR to another disk.",
                    field="model",
                )
            with Checkpoints(root).write(name) as draft:
                fill(draft)
            folder = root / name
    return folder


def damaged_folders() -> list[Path]:
    """Return prepared folders with a missing file, or a file whose size differs from the
    manifest."""
    manifests = sorted(_root().glob(f"*/{MANIFEST}"))
    return [file.parent for file in manifests if changed_file(file.parent, contents=False)]


def cached_value(path: Path, state: Sequence[Any], read: Callable[[], Any]) -> Any:
    """Return the JSON value that `read` gets from a file or folder. The value is cached for all
    processes, and is read again when `state`, a description of the contents, changes."""
    folder = settings().cache_dir.expanduser() / "read"
    file = folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    key = json.dumps([str(path), *state])
    with suppress(OSError, ValueError, TypeError):
        cached_key, value = json.loads(file.read_text())
        if cached_key == key:
            return value
    value = read()
    with suppress(OSError):  # the disk is full or read-only; the value is read again next time
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder) as draft:
            json.dump([key, value], draft)
            draft.flush()
            file.unlink(missing_ok=True)
            os.link(draft.name, file)
        by_age = sorted(folder.glob("*.json"), key=lambda entry: entry.stat().st_mtime)
        for old in by_age[:-MAX_CACHED_VALUES]:
            old.unlink(missing_ok=True)
    return value


def _root() -> Path:
    return settings().cache_dir.expanduser() / "models"
