"""The layout of a backup: one uncompressed tar file (weights do not compress), readable by `tar`.
A file of one run has `run.jsonl` in place of a database, and no models.

results.db             the database; runs that were live have been interrupted in it
artifacts/RUN/…        logs, models, exports and small files; checkpoints if asked for
models/…               models of your own in the data folder
manifest.json          version, schema, and size and sha256 of every file; written last
"""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, Field

DATABASE, ARTIFACTS, MODELS, MANIFEST = "results.db", "artifacts", "models", "manifest.json"
ROWS = "run.jsonl"
TOPS = (DATABASE, ARTIFACTS, MODELS)
OF_ONE_RUN = (ROWS, ARTIFACTS)
BLOCK = 2**20  # bytes read at a time

Progress = Callable[[int, int], None]  # bytes done, bytes in total


class ArchivedFile(BaseModel):
    """Size and hex sha256 of one file."""

    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """The contents of a backup: name in the archive -> size and checksum. `version`: of Slimscope;
    `created_at`: UTC milliseconds since 1970."""

    format: Literal[1] = 1
    version: str
    schema_revision: str
    created_at: int
    weights: bool
    checkpoints: bool
    files: dict[str, ArchivedFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def silent(done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def counted(progress: Progress, total: int) -> Callable[[int], None]:
    """What tells a `Progress` of bytes that have been done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance
