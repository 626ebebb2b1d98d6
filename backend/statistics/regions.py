"""Reader for a rectangle of a weight matrix in a saved model. Does not import torch.

A safetensors file consists of the length of its header (8 bytes), the header, and the values row by
row, so a few rows can be read without the others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import ModelError
from backend.models.sources.headers import MAX_HEADER_BYTES, weight_files

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class Region:
    """Rectangle of a matrix [out, in].

    Attributes:
        rows: first row, and the row after the last.
        columns: first column, and the column after the last.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def around(cls, row: int, column: int, shape: tuple[int, int], size: int) -> "Region":
        """Region of at most `size` rows and columns centered at (row, column), moved inside the
        matrix at its borders."""
        spans = []
        for center, length in zip((row, column), shape, strict=True):
            first = max(0, min(center - size // 2, length - size))
            spans.append((first, min(first + size, length)))
        return cls(spans[0], spans[1])


def read_region(
    folder: Path, tensor: str, region: Region, steps: tuple[int, int] = (1, 1)
) -> np.ndarray | None:
    """Read the values [rows, columns] of a region in float32.

    Args:
        folder: folder of the model.
        tensor: full parameter name.
        region: rectangle to read.
        steps: strides of rows and columns.

    Returns:
        the values, or None if the model has no unquantized matrix of this name.

    Raises:
        ModelError: a file is missing or damaged.
    """
    matrix = _open_matrix(folder, tensor)
    if matrix is None:
        return None
    values = np.array(matrix[slice(*region.rows, steps[0]), slice(*region.columns, steps[1])])
    if values.dtype.kind == "u":  # bfloat16 is the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _open_matrix(folder: Path, tensor: str) -> np.ndarray | None:
    """Map a matrix into memory; None if no file has a matrix of this name in `FLOATS`."""
    for path in weight_files(folder):
        try:
            location = _locate(path, tensor)
            if location is not None:
                dtype, shape, offset = location
                return np.memmap(path, dtype, "r", offset, shape)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{tensor} cannot be read.",
                f"{path.name} is damaged: {error}.",
                "Save the model again.",
            ) from error
    return None


def _locate(path: Path, tensor: str) -> tuple[np.dtype[Any], tuple[int, int], int] | None:
    """Dtype, shape and file offset of a matrix; None if the file does not have it."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        entry = json.loads(file.read(header_bytes)).get(tensor)
    if entry is None or entry["dtype"] not in FLOATS or len(entry["shape"]) != 2:
        return None
    outputs, inputs = map(int, entry["shape"])
    offset = 8 + header_bytes + int(entry["data_offsets"][0])
    return FLOATS[entry["dtype"]], (outputs, inputs), offset
