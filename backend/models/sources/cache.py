"""Model folders that were downloaded or converted once and are shared by all jobs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from backend.checkpoints import MANIFEST, Checkpoints
from backend.errors import ModelError
from backend.models.memory import readable
from backend.settings import settings

SOURCE = "SOURCE.json"
Say = Callable[[str], None]


def silent(line: str) -> None:
    """A `Say` that says nothing."""


@dataclass(frozen=True)
class CacheOrigin:
    """Where a prepared folder came from; lies beside the weights as SOURCE.json."""

    title: str
    note: str
    origin: str
    licence: str

    def write(self, folder: Path) -> None:
        (folder / SOURCE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> CacheOrigin | None:
        """The note in `folder`, None when there is none."""
        try:
            return cls(**json.loads((folder / SOURCE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def prepared(name: str) -> Path | None:
    """The prepared folder `name` if it is there; it is whole, since it was renamed into place."""
    folder = _root() / name
    return folder if (folder / MANIFEST).is_file() else None


def prepare_once(name: str, space: int, fill: Callable[[Path], None]) -> Path:
    """The prepared folder `name`, filled by `fill` when it is not there yet.

    Two processes that ask at the same time do the work once: the second waits.

    Raises:
        ModelError: less than `space` bytes are free on the disk.
    """
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not (folder := prepared(name)):
            _check_space(root, space)
            with Checkpoints(root).write(name) as draft:
                fill(draft)
            folder = root / name
    return folder


def _root() -> Path:
    return settings().cache_dir.expanduser() / "models"


def _check_space(root: Path, space: int) -> None:
    free = shutil.disk_usage(root).free
    if free < space:
        raise ModelError(
            f"{root} has no room for the model.",
            f"It needs {readable(space)}; {readable(free)} are free.",
            "Free some space or set SLIMSCOPE_CACHE_DIR to another disk.",
            field="model",
        )
