"""Where a model spec leads: a built-in, a prepared folder, the hub, a folder or file on disk.

Models on disk are read from the allowed folders only, links followed; whatever lies elsewhere is
refused in the same words whether it exists or not. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from backend.errors import ModelError
from backend.models.sources import hub, smollm2
from backend.models.sources.cache import CacheOrigin, Say, prepare_once, prepared, silent
from backend.models.sources.gguf import convert, read_gguf
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
        ModelRefused: outside the allowed folders, not there, or no spec at all.
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


def materialise(spec: str, say: Say = silent) -> Path:
    """The folder the model is loaded from: config.json, *.safetensors, tokenizer.

    SmolLM2 and GGUF files are converted once, hub models are downloaded; both may take minutes.

    Args:
        say: called with a line of text when something is about to take long.

    Raises:
        ModelRefused: the model cannot be had; `why` and `do` say more.
    """
    if spec == TOY:
        return TOY_FOLDER
    if spec == smollm2.NAME:
        return smollm2.set_up(say)
    if is_hub_id(spec):
        return hub.cached(spec) or _download(spec, say)
    path = on_disk(spec)
    return _converted(path, say) if path.suffix == ".gguf" else path


def _download(hub_id: str, say: Say) -> Path:
    say(f"downloading {hub_id}")
    return hub.download(hub_id)


def _converted(path: Path, say: Say) -> Path:
    name = gguf_name(path)
    if folder := prepared(name):
        return folder
    _, headers, note = read_gguf(path)

    def fill(draft: Path) -> None:
        say(f"converting {path.name} to float32 safetensors, once")
        convert(path, draft)
        CacheOrigin(path.stem, note, str(path), "that of the file").write(draft)

    return prepare_once(name, 4 * sum(each.elements for each in headers.values()), fill)


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
