"""Parse a model spec: `toy`, `smollm2-135m`, a hub id (org/name), a model folder, a .gguf file.

Files are read from the allowed folders only, symbolic links resolved. Anything elsewhere is
rejected with the same message whether it exists or not. Does not import torch.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from backend.errors import ModelError
from backend.settings import settings

TOY = "toy"
TOY_FOLDER = Path(__file__).parent / "toy"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(spec: str) -> bool:
    """Whether `spec` reads as org/name; paths are absolute or start with ~ or a dot."""
    return bool(HUB_ID.fullmatch(spec)) and not spec.endswith(".gguf")


def on_disk(spec: str) -> Path:
    """The folder or .gguf file a path names, absolute, all links followed.

    Raises:
        ModelError: outside the allowed folders, not there, or no spec at all.
    """
    if not spec.startswith(("/", "~", ".")):
        raise ModelError(
            f"{spec!r} names no model.",
            "It is neither toy, smollm2-135m, an id like org/name nor an absolute path.",
            "Choose one of the list.",
            field="model",
        )
    path = _allowed(Path(spec).expanduser(), spec)
    there = path.is_file() if path.suffix == ".gguf" else path.is_dir()
    if not there:
        why = "There is no folder and no .gguf file of that name."
        raise ModelError(f"{spec} was not found.", why, "Check the path.", field="model")
    for inner in path.iterdir() if path.is_dir() else ():
        _allowed(inner, spec)
    return path


def gguf_name(path: Path) -> str:
    """Name of the prepared folder of a GGUF file: another one when the file has changed."""
    state = path.stat()
    key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
    return f"gguf-{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _allowed(path: Path, spec: str) -> Path:
    """`path` with links followed, if that is inside the allowed folders."""
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in settings().readable_roots()):
        raise ModelError(
            f"{spec} may not be read.",
            "It lies, or leads, outside the folders models may be read from.",
            "Move it into one of them, or add its folder to SLIMSCOPE_MODEL_DIRS.",
            field="model",
        )
    return real
