"""Figures of finished work, kept beside its checkpoints while the database does not take them: a
line of JSON for each row, the name of its table and its values. The last line of a process that was
killed may not be complete; then no checkpoint relies on it."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.store.tables import TABLES_OF_A_RUN
from jobs.runtime.rows import Row

BYTES = "$base64"


class FigureSpool:
    """The file of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: int | None = None  # of its last complete line, once that is known

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows behind those that are there. They are on the disk when this returns."""
        if not rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._end is None:
            self._end = sum(map(len, self._lines()))
        lines = (json.dumps([t.__tablename__, v], default=_packed) + "\n" for t, v in rows)
        added = "".join(lines).encode()
        with self._path.open("ab") as file:
            file.truncate(self._end)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(added)

    def _lines(self) -> list[bytes]:
        """The lines that are complete."""
        if not self._path.exists():
            return []
        return [
            line for line in self._path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]

    def read(self) -> list[Row]:
        """The rows in the order they were written; none without a file."""
        stored = (json.loads(line, object_hook=_unpacked) for line in self._lines())
        return [(TABLES_OF_A_RUN[name], values) for name, values in stored]

    def clear(self) -> None:
        """Delete the file: the database has its rows."""
        self._path.unlink(missing_ok=True)
        self._end = 0


def _packed(value: object) -> object:
    """What JSON has no word for."""
    if isinstance(value, bytes):
        return {BYTES: b64encode(value).decode()}
    raise TypeError(value)


def _unpacked(found: dict[str, Any]) -> Any:
    return b64decode(found[BYTES]) if found.keys() == {BYTES} else found
