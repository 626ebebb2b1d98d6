"""Where a run keeps its files, and how its log is read.

artifacts/sds-0042/            the run's folder
    a1/log.txt                 what attempt 1 printed
    work/                      checkpoints, shared by all attempts, written by one at a time
    model/                     what the run produced
"""

from __future__ import annotations

import codecs
from pathlib import Path

from backend.settings import settings

TAIL_BYTES = 64_000


def run_folder(run: str) -> Path:
    """The folder of run "sds-0042"."""
    return settings().artifacts / run


def log_file(run: str, attempt: int) -> Path:
    """What attempt `attempt` printed."""
    return run_folder(run) / f"a{attempt}" / "log.txt"


def work_folder(run: str) -> Path:
    """The checkpoints of a run."""
    return run_folder(run) / "work"


def whole_log(run: str, attempts: int) -> bytes:
    """The logs of all attempts of a run, one after the other, each under its number."""
    files = ((n, log_file(run, n)) for n in range(1, attempts + 1))
    return b"".join(
        f"===== attempt {n} =====\n".encode() + file.read_bytes()
        for n, file in files
        if file.is_file()
    )


def read_log(
    run: str, attempt: int, after: int | None = None, most: int | None = None
) -> tuple[str, int, int]:
    """The log of an attempt from byte `after` on, or its last part; and where to go on.

    Args:
        most: bytes that are read; of more, the last ones.

    Returns:
        Text up to the last whole character (invalid bytes replaced), the byte offset it begins
        at, and that behind it; ("", 0, 0) without a log.
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
