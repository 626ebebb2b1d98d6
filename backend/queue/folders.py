"""Paths of a run's files, and reading of its log.

artifacts/sds-0042/            the run's folder
    a1/log.txt                 output of attempt 1
    work/                      checkpoints, shared by all attempts, one writer at a time
    model/                     the saved model
"""

import codecs
import shutil
from pathlib import Path

from backend.settings import settings

TAIL_BYTES = 64_000


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
