"""Model specs, and checks of the folders that they name: `toy`, a shipped model
(`smollm2-135m`, `gemma-3-270m`), a hub id (org/name), a model folder, or a .gguf file.

The error for a path outside the allowed folders does not reveal whether the path exists. Does not
import torch.
"""

import hashlib
import os
import platform
import re
from pathlib import Path

from backend.checkpoints import MANIFEST, changed_file
from backend.errors import ModelError
from backend.files import fingerprint_of, real_path
from backend.settings import settings

MAX_ENTRIES = 10_000  # files and folders in a model folder
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
TOY = "toy"
TOY_FOLDER = Path(__file__).parent / "toy"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_folder(folder: Path) -> None:
    """Check that a folder holds a plain model. Raises ModelError: it contains an adapter, a link to
    the outside, or a file whose size has changed since it was saved."""
    check_no_adapter(folder)
    check_links(folder)
    check_unchanged(folder)


def check_no_adapter(folder: Path) -> None:
    """Check that there is no adapter next to the weights. Transformers would attach it silently,
    and the wrapped layers would have other names, also in saved files. Raises ModelError: there is
    an adapter."""
    if file := next((name for name in ADAPTER_FILES if (folder / name).exists()), None):
        raise adapter_error(folder, file)


def adapter_error(folder: Path, file: str = ADAPTER_FILES[0]) -> ModelError:
    """Return the error for a model with an adapter. `file`: a file of the adapter."""
    return ModelError(
        f"The model in {folder} has an adapter that is not merged.",
        f"{file} is in its folder, and an adapter changes the layers of the model.",
        "Merge it with peft (model.merge_and_unload()), save the result to a new folder and "
        "choose that folder. To use the model without the adapter, move the adapter's files away.",
        field="model",
    )


def check_links(folder: Path) -> None:
    """Check that the folder and its subfolders contain no broken link and no link to the outside.

    Snapshots of the Hub consist of links to the blobs of the same repository, `models--ORG--NAME`.
    Raises ModelError: there is such a link, or the folder has more than `MAX_ENTRIES` entries."""
    real = real_path(folder)
    is_snapshot = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    root, entries = real.parents[1] if is_snapshot else real, 0
    for parent, folders, files in os.walk(real):
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise _access_error(
                folder,
                f"It holds more than {MAX_ENTRIES:,} files.",
                "Choose the folder of one model.",
            )
        for path in (Path(parent, name) for name in (*folders, *files)):
            target = real_path(path)
            if not target.is_relative_to(root) or not os.path.exists(target):  # noqa: PTH110
                raise _access_error(
                    folder,
                    f"{path.relative_to(real)} is a link to a file outside the folder, or a broken "
                    "or circular link.",
                    "Replace it by a copy of the file.",
                )


def _access_error(folder: Path, why: str, do: str) -> ModelError:
    return ModelError(f"The model in {folder} may not be read.", why, do, field="model")


def check_unchanged(folder: Path, *, contents: bool = False) -> None:
    """Check that the files of a folder saved by Slimscope have not changed. `contents`: also
    compare their sha256; see `changed_file`. Raises ModelError: a file has changed."""
    if name := changed_file(folder, contents=contents):
        artifacts, real = settings().artifacts.resolve(), folder.resolve()
        run = real.relative_to(artifacts).parts[0] if artifacts in real.parents else ""
        repair = f"run {run} again" if run else "delete the folder, so that it is set up again"
        raise ModelError(
            f"The model of {run} is damaged." if run else f"The model in {folder} is damaged.",
            f"{name} has changed since it was saved.",
            f"Restore the file, or {repair}. If the change is intended, delete {MANIFEST}.",
            field="model",
        )


def is_hub_id(spec: str) -> bool:
    """Return True if `spec` has the form org/name. Paths are absolute or start with ~ or a dot."""
    return bool(HUB_ID.fullmatch(spec)) and not spec.endswith(".gguf")


def resolve_model_path(spec: str) -> Path:
    """Return the absolute path of a model folder or .gguf file, with links resolved. Raises
    ModelError: the path is outside the allowed folders, does not exist, or is not a valid spec."""
    if not spec.startswith(("/", "~", ".")) or "\0" in spec:
        raise ModelError(
            f"{spec!r} is not a model.",
            "It is neither a built-in name, an id like org/name nor an absolute path.",
            "Choose a model from the list.",
            field="model",
        )
    if expected := settings().inputs.get(spec):
        return _find_copy(Path(spec), expected)
    path = real_path(spec)
    if not any(path.is_relative_to(root) for root in settings().readable_roots()):
        raise ModelError(
            f"{spec} may not be read.",
            "It is outside the allowed model folders, or a link out of them.",
            "Move it into one of them, or add its folder to SLIMSCOPE_MODEL_DIRS.",
            field="model",
        )
    exists = os.path.isfile if path.suffix == ".gguf" else os.path.isdir  # neither raises
    if not exists(path):
        raise ModelError(
            f"{spec} was not found.",
            "There is no folder or .gguf file of that name, or it is a broken link.",
            "Check the path.",
            field="model",
        )
    if path.suffix != ".gguf":
        check_links(path)
    return path


def _find_copy(path: Path, fingerprint: str) -> Path:
    """Find this machine's copy of a model that another machine has at `path`: at the same path, or
    under the same name in an allowed folder. Raises ModelError: no copy has that fingerprint."""
    roots = settings().readable_roots()
    for candidate in (path, *(root / path.name for root in roots)):
        real = real_path(candidate)
        is_allowed = any(real.is_relative_to(root) for root in roots)
        if is_allowed and real.exists() and fingerprint_of(real) == fingerprint:
            return real
    raise ModelError(
        f"{platform.node()} has no model {path.name}.",
        "None of its folders holds the files that the run was submitted with.",
        "Copy them into a folder of SLIMSCOPE_MODEL_DIRS on that machine, and resume.",
        field="model",
    )


def gguf_folder_name(path: Path) -> str:
    """Return the name of the prepared folder of a GGUF file. It changes with the file."""
    state = path.stat()
    key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
    return f"gguf-{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
