"""Read the weight matrices of a model one at a time, directly from its files.

Only the current matrix is in memory, so models larger than the memory can be inspected. Names,
values and the [out, in] orientation are those of the loaded model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from backend.models.facts import IN_OUT, LinearShape, full_name, text_config
from backend.models.sources.headers import read_config, weight_files


class StoredLinears:
    """The prunable weights in a folder of safetensors files.

    Args:
        linears: from the facts of the model in `folder`.
    """

    def __init__(self, folder: Path, linears: tuple[LinearShape, ...]) -> None:
        config = read_config(folder)
        self._transposed = str(text_config(config).get("model_type")) in IN_OUT
        self._places = _places(folder)
        self._linears = linears

    def block(self, index: int, device: str = "cpu") -> Iterator[tuple[LinearShape, Tensor]]:
        """The weights [out, in] of one decoder block in float32."""
        for linear in self._linears:
            if linear.block == index:
                path, key = self._places[f"{linear.name}.weight"]
                with safe_open(path, framework="pt", device=device) as file:
                    weight = file.get_tensor(key).float()
                yield linear, weight.T.contiguous() if self._transposed else weight


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Parameter name in the loaded model -> its file and its name in the file."""
    places = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                places[full_name(key)] = (path, key)
    return places
