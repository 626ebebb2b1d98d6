"""Read headers of weight files: names, shapes and dtypes, no weights. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backend.errors import ModelError
from backend.models.facts import TensorHeader

OPTIONS: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
}  # from_pretrained
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        ModelError: there is none, or it is not a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(folder, f"Its config.json cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise _unreadable(folder, "Its config.json is not a JSON object.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from `folder`; all of them exist.

    Raises:
        ModelError: there are none, or a shard is missing.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        raise _no_safetensors(folder)
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise _unreadable(folder, f"Its {INDEX} cannot be read: {error}.") from error
    missing = sorted(name for name in names if not (folder / Path(name).name).is_file())
    if missing:
        raise _unreadable(folder, f"{missing[0]} is missing ({len(missing)} of {len(names)}).")
    return sorted(folder / Path(name).name for name in names)


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Name -> header of every tensor in the folder's safetensors files.

    Raises:
        ModelError: a file is missing or damaged.
    """
    headers: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    tensor = file.get_slice(name)
                    headers[name] = TensorHeader(tuple(tensor.get_shape()), tensor.get_dtype())
        except (OSError, SafetensorError) as error:
            raise _unreadable(folder, f"{path.name} is damaged: {error}.") from error
    return headers


def _no_safetensors(folder: Path) -> ModelError:
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        return _unreadable(
            folder,
            "Its weights are pickle files, which can execute code when loaded.",
            "Convert them to safetensors with model.save_pretrained(folder).",
        )
    return _unreadable(folder, "It has no model.safetensors.")


def _unreadable(folder: Path, why: str, do: str = "Choose a complete model folder.") -> ModelError:
    return ModelError(f"The model in {folder} cannot be read.", why, do, field="model")
