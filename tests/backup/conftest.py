"""Fixtures for backups: the queue of real jobs, and a data folder that can be switched."""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

import pytest

from backend.store.migrate import newest_revision
from tests.conftest import Given
from tests.jobs.conftest import counting_queue, loop, queue, wait

__all__ = ["counting_queue", "loop", "move_to", "queue", "wait"]


def write_tar(
    target: Path, entries: Iterable[tuple[str, bytes]], listed: Mapping[str, object]
) -> Path:
    """An archive of these files, whose manifest lists others."""
    manifest = {
        "version": "0.1.0",
        "schema_revision": newest_revision(),
        "created_at": 1,
        "weights": False,
        "checkpoints": False,
        "files": listed,
    }
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in (*entries, ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, BytesIO(data))
    return target


@pytest.fixture
def move_to(queue: Path, given: Given) -> Iterator[Callable[[Path], None]]:
    """Switch to another data folder until the test ends."""
    yield lambda folder: given(DATA_DIR=str(folder))
    given(DATA_DIR=str(queue))
