"""Headers of weight files: names, shapes and dtypes, without weights. Files may come from
strangers, so their sizes are checked before they are parsed. Does not import torch.

Also the options and the lock for building models from such files. Code of a model is never run, and
only one thread builds a model at a time. While transformers and accelerate build a model, they
replace functions of PyTorch and of their classes (initialization, ties, the registration of
parameters, the default dtype) for all threads. If two threads did this at once, the second would
save the replaced functions of the first and later restore them permanently.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from safetensors import SafetensorError, safe_open

from backend.errors import ModelError
from backend.models.families.stored import TensorHeader

# Arguments of every `from_pretrained` call.
OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 8 * 2**20  # a parsed object takes up to 25 times as much memory
MAX_HEADER_BYTES = 8 * 2**20  # safetensors header with tens of thousands of tensors
SHAPE_HEADER = TensorHeader((2,), "I64")  # header of a tensor with the shape of a packed layer
FILE_NAME = re.compile(r"[^/\\\0]{1,200}\.safetensors")  # without slashes, so inside the folder
P = ParamSpec("P")
R = TypeVar("R")
CONSTRUCTION_LOCK = threading.RLock()


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises ModelError: the file is missing, larger than
    `MAX_JSON_BYTES`, or not a JSON object."""
    folder, name = path.parent, path.name
    try:
        _check_size(folder, path, path.stat().st_size, MAX_JSON_BYTES)
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"Its {name} cannot be read: {error}.") from error
    except RecursionError as error:
        raise _unreadable(folder, f"Its {name} is nested too deeply.") from error
    if not isinstance(content, dict):
        raise _unreadable(folder, f"Its {name} is not a JSON object.")
    return content


def _check_size(folder: Path, path: Path, size: int, max_bytes: int) -> None:
    """Raise `ModelError` unless `path` is a regular file with at most `max_bytes` to parse."""
    if not path.is_file():  # reading a pipe would wait forever
        raise _unreadable(folder, f"Its {path.name} is not a regular file.")
    if size > max_bytes:
        raise _unreadable(
            folder,
            f"Its {path.name} has {size / 2**20:,.0f} MiB to parse; up to {max_bytes >> 20} MiB "
            "are accepted.",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder. Raises ModelError: see `read_json`."""
    config = read_json(folder / "config.json")
    if "transformers_weights" in config:  # transformers would load a file that was not checked
        raise _unreadable(folder, "Its config.json names a file of weights.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers would load from `folder`. Raises ModelError:
    there are none, or a shard is missing or outside the folder."""
    names = {*_read_index(folder).values()} or {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise _unreadable(folder, f"{missing[0]} is missing ({len(missing)} of {len(names)}).")
    return sorted(folder / name for name in names)


def _read_index(folder: Path) -> dict[str, str]:
    """Read the file name of each tensor from the index; empty for a folder with a single file."""
    if (folder / "model.safetensors").is_file():
        return {}
    if not (folder / INDEX).is_file():
        if any(any(folder.glob(x)) for x in ("*.bin", "*.pt", "*.pth", "*.ckpt")):
            raise _unreadable(
                folder,
                "Its weights are pickle files, which can execute code when loaded.",
                "Convert them to safetensors with model.save_pretrained(folder).",
            )
        raise _unreadable(folder, "It has no model.safetensors.")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _unreadable(folder, f"Its {INDEX} has no weight_map.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise _unreadable(
                folder,
                f"Its {INDEX} names {str(name)[:80]!r} for {tensor[:80]}, which is not a file in "
                "the folder.",
            )
    return weight_map


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the header of every tensor in the safetensors files of a folder, by name. Raises
    ModelError: a file is missing or damaged."""
    headers: dict[str, TensorHeader] = {}
    remaining_bytes, tensor_files = MAX_HEADER_BYTES, set[tuple[str, str]]()
    for path in weight_files(folder):
        remaining_bytes -= _header_bytes(folder, path, remaining_bytes)
        with _open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_slice(name)
                headers[name] = TensorHeader(tuple(tensor.get_shape()), tensor.get_dtype())
                tensor_files.add((name, path.name))
    if wrong := _read_index(folder).items() - tensor_files:
        name, file = min(wrong)
        raise _unreadable(
            folder, f"Its {INDEX} names {file} for {name[:80]}, which is not in that file."
        )
    return headers


def read_shapes(folder: Path, headers: Mapping[str, TensorHeader]) -> dict[str, tuple[int, ...]]:
    """Read the shapes [out, in] that are stored next to the codes of packed layers, by layer.
    Raises ModelError: a file is missing or damaged."""
    suffix, shapes = ".weight_shape", dict[str, tuple[int, ...]]()
    shape_tensors = {
        name for name, header in headers.items() if name.endswith(suffix) and header == SHAPE_HEADER
    }
    for path in weight_files(folder) if shape_tensors else ():
        with _open_safetensors(path) as file:
            for name in shape_tensors.intersection(file.keys()):
                shapes[name.removesuffix(suffix)] = (*map(int, file.get_tensor(name)),)
    return shapes


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _unreadable(path.parent, f"{path.name} is damaged: {error}.") from error


def _header_bytes(folder: Path, path: Path, max_bytes: int) -> int:
    """Read the size of a safetensors header from the first 8 bytes of a file. Raises ModelError: it
    exceeds `max_bytes` or the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _unreadable(folder, f"{path.name} is damaged: {error}.") from error
    if header_bytes > size - 8:
        raise _unreadable(folder, f"{path.name} is damaged: its header is longer than the file.")
    _check_size(folder, path, header_bytes, max_bytes)
    return header_bytes


def _unreadable(folder: Path, why: str, do: str = "Choose a complete model folder.") -> ModelError:
    return ModelError(f"The model in {folder} cannot be read.", why, do, field="model")


def exclusive_construction(build: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that builds a model, so that only one thread builds models at a time."""

    @wraps(build)
    def locked_build(*args: P.args, **kwargs: P.kwargs) -> R:
        with CONSTRUCTION_LOCK:
            return build(*args, **kwargs)

    return locked_build
