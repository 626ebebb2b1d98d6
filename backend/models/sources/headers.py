"""Headers of weight files: names, shapes and dtypes, no weights. Does not import torch. Files may
come from strangers, so everything is bounded before it is parsed.

Also how models are built from such files: without code of theirs, and by one thread at a time.
While transformers and accelerate build one, they exchange functions of PyTorch and of their classes
(initialization, ties, the registration of parameters, the default dtype) for all threads. Of two at
once, the second keeps what the first has exchanged, and puts that back for good."""

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

OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # from_pretrained
INDEX = "model.safetensors.index.json"
MAX_JSON = 8 * 2**20  # bytes; a parsed object takes up to 25 times as much memory
MAX_HEADER = 8 * 2**20  # bytes of a safetensors header: tens of thousands of tensors
SHAPE = TensorHeader((2,), "I64")  # of a tensor that holds the shape of a packed one
FILE_NAME = re.compile(r"[^/\\\0]{1,200}\.safetensors")  # no path, so none out of the folder
P = ParamSpec("P")
R = TypeVar("R")
CONSTRUCTION = threading.RLock()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError: no such file, larger than `MAX_JSON`, or not a
    JSON object."""
    folder, name = path.parent, path.name
    try:
        _check_size(folder, path, path.stat().st_size, MAX_JSON)
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"Its {name} cannot be read: {error}.") from error
    except RecursionError as error:
        raise _unreadable(folder, f"Its {name} is nested too deeply.") from error
    if not isinstance(content, dict):
        raise _unreadable(folder, f"Its {name} is not a JSON object.")
    return content


def _check_size(folder: Path, path: Path, size: int, most: int) -> None:
    """Check that `path` is a regular file, of whose `size` bytes no more than `most` are parsed."""
    if not path.is_file():  # reading a pipe would wait for ever
        raise _unreadable(folder, f"Its {path.name} is not a regular file.")
    if size > most:
        raise _unreadable(
            folder,
            f"Its {path.name} has {size / 2**20:,.0f} MiB to parse; up to {most >> 20} MiB are "
            "accepted.",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ModelError: see `read_json`."""
    config = read_json(folder / "config.json")
    if "transformers_weights" in config:  # transformers would read another file than is checked
        raise _unreadable(folder, "Its config.json names a file of weights.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from `folder`; all of them exist. Raises
    ModelError: there are none, or a shard is missing or no file of the folder."""
    names = {*_places(folder).values()} or {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise _unreadable(folder, f"{missing[0]} is missing ({len(missing)} of {len(names)}).")
    return sorted(folder / name for name in names)


def _places(folder: Path) -> dict[str, str]:
    """Tensor -> file, by the folder's index; nothing of a folder with one file."""
    if (folder / "model.safetensors").is_file():
        return {}
    if not (folder / INDEX).is_file():
        if any(any(folder.glob(end)) for end in ("*.bin", "*.pt", "*.pth", "*.ckpt")):
            raise _unreadable(
                folder,
                "Its weights are pickle files, which can execute code when loaded.",
                "Convert them to safetensors with model.save_pretrained(folder).",
            )
        raise _unreadable(folder, "It has no model.safetensors.")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _unreadable(folder, f"Its {INDEX} has no weight_map.")
    for tensor, name in places.items():
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise _unreadable(
                folder,
                f"Its {INDEX} names {str(name)[:80]!r} for {tensor[:80]}, which is not a file in "
                "the folder.",
            )
    return places


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in the folder's safetensors files. Raises ModelError: a file
    is missing or damaged."""
    headers: dict[str, TensorHeader] = {}
    rest, found = MAX_HEADER, set[tuple[str, str]]()
    for path in weight_files(folder):
        rest -= _header_bytes(folder, path, rest)
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                tensor = file.get_slice(name)
                headers[name] = TensorHeader(tuple(tensor.get_shape()), tensor.get_dtype())
                found.add((name, path.name))
    if wrong := _places(folder).items() - found:
        name, file = min(wrong)
        raise _unreadable(folder, f"Its {INDEX} names {file} for {name[:80]}, which is not in it.")
    return headers


def read_shapes(folder: Path, headers: Mapping[str, TensorHeader]) -> dict[str, tuple[int, ...]]:
    """Layer -> [out, in], of the layers whose file says so beside their packed codes. Raises
    ModelError: a file is missing or damaged."""
    ending, shapes = ".weight_shape", dict[str, tuple[int, ...]]()
    pairs = {n for n, h in headers.items() if n.endswith(ending) and h == SHAPE}
    for path in weight_files(folder) if pairs else ():
        with _opened(path) as file:
            for name in pairs.intersection(file.keys()):
                shapes[name.removesuffix(ending)] = (*map(int, file.get_tensor(name)),)
    return shapes


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise _unreadable(path.parent, f"{path.name} is damaged: {error}.") from error


def _header_bytes(folder: Path, path: Path, most: int) -> int:
    """Size of the header of a safetensors file, checked against `most`; the file begins with it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _unreadable(folder, f"{path.name} is damaged: {error}.") from error
    if header > size - 8:
        raise _unreadable(folder, f"{path.name} is damaged: its header is longer than the file.")
    _check_size(folder, path, header, most)
    return header


def _unreadable(folder: Path, why: str, do: str = "Choose a complete model folder.") -> ModelError:
    return ModelError(f"The model in {folder} cannot be read.", why, do, field="model")


def alone(build: Callable[P, R]) -> Callable[P, R]:
    """`build`, while no other thread builds a model."""

    @wraps(build)
    def building(*args: P.args, **kwargs: P.kwargs) -> R:
        with CONSTRUCTION:
            return build(*args, **kwargs)

    return building
