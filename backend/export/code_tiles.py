"""The codes of a part of a saved matrix, read without the rest of it. Does not import torch.

`compressed_tensors` and `gptq_layout` say how codes and zero-points lie. Of an output, the codes of
compressed-tensors are words that lie in a row; those of GPTQ are words of one column.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backend.errors import ModelError
from backend.export.formats import Layout, read_layout, unreadable
from backend.statistics.regions import Region, read_region, stored_words


@dataclass(frozen=True)
class CodeTile:
    """Codes (int64) and zero-points (int64; of grids with offsets float32) q, z [rows, columns]."""

    region: Region
    codes: np.ndarray
    zeros: np.ndarray
    bits: int

    @property
    def levels(self) -> np.ndarray:
        """q - z: how many steps of the grid a weight lies from 0, [rows, columns]."""
        levels: np.ndarray = self.codes - self.zeros
        return levels


def read_codes(folder: Path, tensor: str, region: Region) -> CodeTile | None:
    """The codes of a region of a tensor named with its suffix ".weight"; None where the folder
    holds no packed matrix of that name. `ModelError` if a file is missing or damaged."""
    try:
        layout = read_layout(folder).of(tensor.removesuffix(".weight"))
    except ModelError:
        return None
    name = tensor.removesuffix(".weight")
    by_rows = layout.format in ("compressed-tensors", "slimscope")
    words = stored_words(folder, f"{name}.{'weight_packed' if by_rows else 'qweight'}")
    if words is None or layout.format == "awq":
        return None
    by_output = words if by_rows else words.T
    codes = _unpacked(by_output[slice(*region.rows)], layout.bits, region.columns)
    if codes.shape != tuple(last - first for first, last in (region.rows, region.columns)):
        raise unreadable(folder, f"{name} is smaller than its statistics.")
    return CodeTile(region, codes, _zeros(folder, name, layout, region), layout.bits)


def _zeros(folder: Path, name: str, layout: Layout, region: Region) -> np.ndarray:
    """The zero-point of every weight of the region, [rows, columns]."""
    if layout.grid == "offset":
        return _real_zeros(folder, name, layout, region)
    count = region.columns[1] - region.columns[0]
    packed = layout.format in ("compressed-tensors", "slimscope")
    if packed and layout.grid == "symmetric":
        return np.full((region.rows[1] - region.rows[0], count), 2 ** (layout.bits - 1))
    words = stored_words(folder, f"{name}.{'weight_zero_point' if packed else 'qzeros'}")
    if words is None:
        raise unreadable(folder, f"{name} has no zero-points.")
    by_group = words.T if packed else words
    points = _unpacked(by_group, layout.bits, region.rows) + (layout.format == "gptq")
    zeros: np.ndarray = points[_groups(layout, region)].T
    return zeros


def _real_zeros(folder: Path, name: str, layout: Layout, region: Region) -> np.ndarray:
    """z = -b / s, from the scales and offsets of all groups; 0 where the scale is 0."""
    groups = _groups(layout, region)
    whole = Region(region.rows, (0, int(groups.max()) + 1))
    parts = (read_region(folder, f"{name}.weight_{part}", whole) for part in ("scale", "offset"))
    scale, offset = parts
    if scale is None or offset is None:
        raise unreadable(folder, f"{name} has no offsets.")
    zeros: np.ndarray = np.divide(-offset, scale, out=np.zeros_like(scale), where=scale != 0)
    return zeros[:, groups]


def _groups(layout: Layout, region: Region) -> np.ndarray:
    """The group of every input of the region."""
    inputs = np.arange(*region.columns)
    return inputs // layout.group_size if layout.group_size else np.zeros_like(inputs)


def _unpacked(words: np.ndarray, bits: int, span: tuple[int, int]) -> np.ndarray:
    """uint32 [n, words] -> the codes of the span, int64 [n, last - first]; see `bit_packing`."""
    first, last = span
    begin, end = first * bits // 32, -(-last * bits // 32)
    part = np.ascontiguousarray(words[:, begin:end])
    stream = np.unpackbits(part.view(np.uint8), axis=1, bitorder="little")
    skipped = first * bits - 32 * begin
    used = stream[:, skipped : skipped + (last - first) * bits]
    codes: np.ndarray = used.reshape(len(part), -1, bits) @ (1 << np.arange(bits))
    return codes
