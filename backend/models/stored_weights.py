"""The weight matrices of a model one at a time, read directly from its files, so that models larger
than the memory can be inspected; [out, in] and named as in the loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from backend.models.families.shapes import LinearShape
from backend.models.sources.headers import weight_files


class StoredLinears:
    """The weight matrices in a folder of safetensors files; `linears`: from its model's facts."""

    def __init__(self, folder: Path, linears: Sequence[LinearShape]) -> None:
        self._files, self._linears = dict[str, Path](), linears  # stored tensor -> its file
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def block(self, index: int, device: str = "cpu") -> Iterator[tuple[LinearShape, Tensor]]:
        """The weights [out, in] of one decoder block in float32."""
        for linear in self._linears:
            if linear.block == index:
                yield linear, self._read(linear, device)

    def _read(self, linear: LinearShape, device: str) -> Tensor:
        at, parts = linear.stored, []
        for name in at.names:
            with safe_open(self._files[name], framework="pt", device=device) as file:
                whole = file.get_slice(name)
                parts.append((whole[:] if at.expert is None else whole[at.expert]).float())
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weight.T.contiguous() if at.transposed else weight
