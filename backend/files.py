"""Paths that people write, with their links resolved.

What identifies the files of a model or a text on every machine, without reading all of them.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

EDGE = 2**20  # bytes read at the beginning and at the end of a file


def real_path(path: str | Path) -> Path:
    """The absolute path with links resolved. Of links in a circle, and of the home of an unknown
    user, what is returned is there for nobody; `Path.resolve` raises different errors for them."""
    return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111


def fingerprint(files: Iterable[Path]) -> str:
    """Hex sha256 of names, sizes, and the first and last MiB of files, in the order of their names.
    Config, headers and small files count as a whole. `OSError` if one cannot be read."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(EDGE, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def fingerprint_of(path: Path) -> str:
    """Of a file, or of the files of a folder, but for hidden ones."""
    if not path.is_dir():
        return fingerprint([path])
    return fingerprint(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
