"""Read a rectangle of a weight matrix out of a saved model. Does not import torch.

A safetensors file is a header, 8 bytes of its length before it, and the values row after row, so a
few rows are read without the rest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import ModelError
from backend.models.sources.headers import MAX_HEADER, weight_files

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class Region:
    """Rows and columns of a matrix [out, in], each from the first to before the last."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def around(cls, row: int, column: int, shape: tuple[int, int], size: int) -> "Region":
        """At most `size` rows and columns, with (row, column) in their middle where there is
        room."""
        spans = []
        for place, length in zip((row, column), shape, strict=True):
            first = max(0, min(place - size // 2, length - size))
            spans.append((first, min(first + size, length)))
        return cls(spans[0], spans[1])


def read_region(
    folder: Path, tensor: str, region: Region, steps: tuple[int, int] = (1, 1)
) -> np.ndarray | None:
    """The values [rows, columns] in float32, or each of some steps; None where the folder has no
    such plain matrix. Raises ModelError: a file is missing or damaged."""
    whole = _stored(folder, tensor)
    if whole is None:
        return None
    values = np.array(whole[slice(*region.rows, steps[0]), slice(*region.columns, steps[1])])
    if values.dtype.kind == "u":  # bfloat16: the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _stored(folder: Path, tensor: str) -> np.ndarray | None:
    """A matrix as it lies in the file; None where there is none of `FLOATS`."""
    for path in weight_files(folder):
        try:
            found = _find(path, tensor)
            if found is not None:
                dtype, shape, start = found
                return np.memmap(path, dtype, "r", start, shape)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{tensor} cannot be read.", f"{path.name} is damaged: {error}.", "Save it again."
            ) from error
    return None


def _find(path: Path, tensor: str) -> tuple[np.dtype[Any], tuple[int, int], int] | None:
    """Dtype, shape, and place in the file of a matrix; None where it is not there."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError("its header is too long")
        entry = json.loads(file.read(length)).get(tensor)
    if entry is None or entry["dtype"] not in FLOATS or len(entry["shape"]) != 2:
        return None
    outputs, inputs = map(int, entry["shape"])
    return FLOATS[entry["dtype"]], (outputs, inputs), 8 + length + int(entry["data_offsets"][0])
