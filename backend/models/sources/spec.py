"""Parse a model spec: `toy`, `smollm2-135m`, a hub id (org/name), a model folder, a .gguf file.
Paths outside the allowed folders are rejected alike whether they exist or not. Does not import
torch."""

import hashlib
import os
import platform
import re
from pathlib import Path

from backend.errors import ModelError
from backend.files import fingerprint_of, real_path
from backend.models.sources.folder import check_links
from backend.settings import settings

TOY = "toy"
TOY_FOLDER = Path(__file__).parent / "toy"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(spec: str) -> bool:
    """Whether `spec` has the form org/name; paths are absolute or start with ~ or a dot."""
    return bool(HUB_ID.fullmatch(spec)) and not spec.endswith(".gguf")


def on_disk(spec: str) -> Path:
    """The model folder or .gguf file at a path, absolute, with links resolved. Raises ModelError:
    outside the allowed folders, not found, or not a valid spec."""
    if not spec.startswith(("/", "~", ".")) or "\0" in spec:
        what = f"{spec!r} is not a model."
        why = "It is neither toy, smollm2-135m, an id like org/name nor an absolute path."
        raise ModelError(what, why, "Choose a model from the list.", field="model")
    if expected := settings().inputs.get(spec):
        return _same_here(Path(spec), expected)
    path = real_path(spec)
    if not any(path.is_relative_to(root) for root in settings().readable_roots()):
        why = "It is outside the folders models may be read from, or links outside them."
        do = "Move it into one of them, or add its folder to SLIMSCOPE_MODEL_DIRS."
        raise ModelError(f"{spec} may not be read.", why, do, field="model")
    exists = os.path.isfile if path.suffix == ".gguf" else os.path.isdir  # raise for no name
    if not exists(path):
        why = "There is no folder and no .gguf file of that name, or it links to nothing."
        raise ModelError(f"{spec} was not found.", why, "Check the path.", field="model")
    if path.suffix != ".gguf":
        check_links(path)
    return path


def _same_here(path: Path, expected: str) -> Path:
    """What is here of the model that another machine has at `path`: at the same path, or under the
    same name in one of the allowed folders. Raises ModelError: nothing with that fingerprint."""
    roots = settings().readable_roots()
    for place in (path, *(root / path.name for root in roots)):
        real = real_path(place)
        allowed = any(real.is_relative_to(root) for root in roots)
        if allowed and real.exists() and fingerprint_of(real) == expected:
            return real
    why = "None of its folders holds one with the files that the run was submitted with."
    do = "Copy it into a folder of SLIMSCOPE_MODEL_DIRS there, and resume."
    raise ModelError(f"{platform.node()} has no model {path.name}.", why, do, field="model")


def gguf_name(path: Path) -> str:
    """Name of the prepared folder of a GGUF file; changes with the file."""
    state = path.stat()
    key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
    return f"gguf-{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
