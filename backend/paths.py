"""Paths that people write, with their links resolved."""

import os
from pathlib import Path


def real_path(path: str | Path) -> Path:
    """The absolute path with links resolved. Of links in a circle, and of the home of an unknown
    user, what is returned is there for nobody; `Path.resolve` raises different errors for them."""
    return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111
