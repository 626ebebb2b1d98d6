"""Parse a model spec, and check the folder it names before anything in it is used: `toy`,
`smollm2-135m`, a hub id (org/name), a model folder, a .gguf file. Paths outside the allowed folders
are rejected alike whether they exist or not. Does not import torch."""

import hashlib
import os
import platform
import re
from pathlib import Path

from backend.checkpoints import MANIFEST, changed_file
from backend.errors import ModelError
from backend.files import fingerprint_of, real_path
from backend.settings import settings

MAX_ENTRIES = 10_000  # of one model
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
TOY = "toy"
TOY_FOLDER = Path(__file__).parent / "toy"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_folder(folder: Path) -> None:
    """Check that a folder holds a plain model. Raises ModelError: it contains an adapter, links to
    files outside, or files of another size than when they were saved."""
    check_no_adapter(folder)
    check_links(folder)
    check_unchanged(folder)


def check_no_adapter(folder: Path) -> None:
    """Check that there is no adapter beside the weights: transformers attaches it without asking.
    The layers it wraps then have other names, under which their weights are also saved. Raises
    ModelError: there is one."""
    if found := next((name for name in ADAPTER_FILES if (folder / name).exists()), None):
        raise adapter_error(folder, found)


def adapter_error(folder: Path, file: str = ADAPTER_FILES[0]) -> ModelError:
    """The error for a model with an adapter, which `file` announces."""
    return ModelError(
        f"The model in {folder} has an adapter that is not merged.",
        f"{file} lies beside its weights, and an adapter changes the layers of the model.",
        "Merge it with peft (model.merge_and_unload()), save the result to a new folder and "
        "choose that one. To use the model without the adapter, move the adapter's files away.",
        field="model",
    )


def check_links(folder: Path) -> None:
    """Check that no entry of the folder or of those in it is a link out of it, or to nothing.
    Snapshots of the Hub consist of links to the blobs of the same repository, `models--ORG--NAME`.
    Raises ModelError: names the link, or the folder holds more than a model."""
    real = real_path(folder)
    snapshot = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    root, entries = real.parents[1] if snapshot else real, 0
    for place, folders, files in os.walk(real):
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise _may_not_be_read(
                folder,
                f"It holds more than {MAX_ENTRIES:,} files.",
                "Choose the folder of one model.",
            )
        for path in (Path(place, name) for name in (*folders, *files)):
            target = real_path(path)
            if not target.is_relative_to(root) or not os.path.exists(target):  # noqa: PTH110
                what = f"{path.relative_to(real)} is a link to a file outside the folder,"
                raise _may_not_be_read(
                    folder,
                    f"{what} to none, or in a circle.",
                    "Put a copy of the file in its place.",
                )


def _may_not_be_read(folder: Path, why: str, do: str) -> ModelError:
    return ModelError(f"The model in {folder} may not be read.", why, do, field="model")


def check_unchanged(folder: Path, *, contents: bool = False) -> None:
    """Check that the files of a folder are those that Slimscope saved, if it did. `contents`:
    compare sha256 sums, too; see `changed_file`. Raises ModelError: names the file and the run that
    saved it."""
    if name := changed_file(folder, contents=contents):
        artifacts, real = settings().artifacts.resolve(), folder.resolve()
        saved = artifacts in real.parents  # by a run
        run = real.relative_to(artifacts).parts[0] if saved else ""
        again = f"run {run} again" if run else "delete the folder, so that it is set up again"
        raise ModelError(
            f"The model of {run} is damaged." if run else f"The model in {folder} is damaged.",
            f"{name} has changed since it was saved.",
            f"Restore the file, or {again}. If the change is intended, delete {MANIFEST}.",
            field="model",
        )


def is_hub_id(spec: str) -> bool:
    """Whether `spec` has the form org/name; paths are absolute or start with ~ or a dot."""
    return bool(HUB_ID.fullmatch(spec)) and not spec.endswith(".gguf")


def on_disk(spec: str) -> Path:
    """The model folder or .gguf file at a path, absolute, with links resolved. Raises ModelError:
    outside the allowed folders, not found, or not a valid spec."""
    if not spec.startswith(("/", "~", ".")) or "\0" in spec:
        raise ModelError(
            f"{spec!r} is not a model.",
            "It is neither toy, smollm2-135m, an id like org/name nor an absolute path.",
            "Choose a model from the list.",
            field="model",
        )
    if expected := settings().inputs.get(spec):
        return _same_here(Path(spec), expected)
    path = real_path(spec)
    if not any(path.is_relative_to(root) for root in settings().readable_roots()):
        raise ModelError(
            f"{spec} may not be read.",
            "It is outside the folders models may be read from, or links outside them.",
            "Move it into one of them, or add its folder to SLIMSCOPE_MODEL_DIRS.",
            field="model",
        )
    exists = os.path.isfile if path.suffix == ".gguf" else os.path.isdir  # raise for no name
    if not exists(path):
        raise ModelError(
            f"{spec} was not found.",
            "There is no folder and no .gguf file of that name, or it links to nothing.",
            "Check the path.",
            field="model",
        )
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
    raise ModelError(
        f"{platform.node()} has no model {path.name}.",
        "None of its folders holds one with the files that the run was submitted with.",
        "Copy it into a folder of SLIMSCOPE_MODEL_DIRS there, and resume.",
        field="model",
    )


def gguf_name(path: Path) -> str:
    """Name of the prepared folder of a GGUF file; changes with the file."""
    state = path.stat()
    key = f"{path}:{state.st_size}:{state.st_mtime_ns}"
    return f"gguf-{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
