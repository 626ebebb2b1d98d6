"""Read the weight matrices of a model one by one, directly from its files.

Nothing but the matrix at hand is held, so a model can be looked at that would not fit into memory.
The numbers are those of the loaded model: same names, same [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from backend.models.facts import IN_OUT, LinearShape, full_name
from backend.models.sources.headers import read_config, weight_files


class StoredLinears:
    """The prunable weights in a folder of safetensors files.

    Args:
        linears: as the facts of the model in `folder` name them.
    """

    def __init__(self, folder: Path, linears: tuple[LinearShape, ...]) -> None:
        config = read_config(folder)
        self._turned = config.get("text_config", config).get("model_type") in IN_OUT
        self._places = _places(folder)
        self._linears = linears

    def block(self, index: int, device: str = "cpu") -> Iterator[tuple[LinearShape, Tensor]]:
        """The weights [out, in] of one decoder block in float32."""
        for linear in self._linears:
            if linear.block == index:
                path, key = self._places[f"{linear.name}.weight"]
                with safe_open(path, framework="pt", device=device) as file:
                    weight = file.get_tensor(key).float()
                yield linear, weight.T.contiguous() if self._turned else weight


def _places(folder: Path) -> dict[str, tuple[Path, str]]:
    """Parameter name of the loaded model -> its file, and its name there."""
    found = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                found[full_name(key)] = (path, key)
    return found
