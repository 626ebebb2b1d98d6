"""Checkpoints of a DL-QAT run. Tensors are safetensors, other data JSON.

energy/          mean square of every input, by layer
gptq-0003/       one block of a quantizer pass: weights to round and their grids
train-dlqat-1/   a training step: parameters and optimiser state
stage-dlqat/     a finished stage: codes, scales and zero-points of every layer, or A and B
.seconds-dlqat/  time it took, over all attempts that were not killed
audit-0003/      errors of all stages of one block
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import NotFoundError
from backend.quantization.bases import Basis, basis_from
from backend.quantization.dlqat.config import STAGE_LABELS
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.training import distributed

TENSORS, FACTS = "tensors.safetensors", "facts.json"
Tensors = Mapping[str, Tensor]


class DLQATStageStore:
    """The checkpoints of one run; tensors are loaded to `device`."""

    def __init__(self, checkpoints: Checkpoints, bits: int, device: str) -> None:
        self._checkpoints, self._bits, self._device = checkpoints, bits, device
        self.claim = checkpoints.claim

    def holds(self, name: str) -> bool:
        """Whether checkpoint `name` exists and is intact."""
        return self._checkpoints.find(name) is not None

    def save(self, name: str, tensors: Tensors, **facts: Any) -> None:
        """Write checkpoint `name`, replacing an existing one. Of several processes the first
        does."""
        if not distributed.is_first():
            return
        with self._checkpoints.write(name) as folder:
            save_file({k: t.contiguous() for k, t in tensors.items()}, folder / TENSORS)
            (folder / FACTS).write_text(json.dumps(facts))

    def facts(self, name: str) -> dict[str, Any]:
        """The JSON data of checkpoint `name`; empty if there is none."""
        folder = self._checkpoints.find(name)
        return {} if folder is None else dict(json.loads((folder / FACTS).read_text()))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of checkpoint `name`.

        Raises:
            NotFoundError: there is none.
        """
        return load_file(self._file(name), device=self._device)

    def some(self, name: str, prefix: str) -> dict[str, Tensor]:
        """The tensors of checkpoint `name` that start with `prefix`, without it."""
        with safe_open(self._file(name), framework="pt", device=self._device) as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}

    def _file(self, name: str) -> Path:
        folder = self._checkpoints.find(name)
        if folder is None:
            stage = name.removeprefix("stage-")
            raise NotFoundError(
                f"{STAGE_LABELS.get(stage, name)} is not stored.",
                "The run does not make it, has not got that far, or the file is damaged.",
                "Let the run finish, or start it again.",
            )
        return folder / TENSORS

    # a layer at a stage, and a start -----------------------------------------------------------

    def save_stage(self, stage: str, layers: Mapping[str, QuantizedWeight], **facts: Any) -> None:
        """Store every layer of a quantised stage."""
        tensors = {
            f"{name}.{part}": tensor
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        self.save(stage_name(stage), tensors, **facts)

    def quantized(self, stage: str, name: str) -> QuantizedWeight:
        """Layer `name` at `stage`."""
        return quantized_from(name, self._bits, self.some(stage_name(stage), f"{name}."))

    def save_starts(
        self, name: str, block: int, starts: Mapping[str, tuple[Tensor, QuantGrid, Basis]]
    ) -> None:
        """Store one block of a quantizer pass: module -> weights to round, their grid and basis."""
        tensors = {
            f"{module}.{part}": tensor
            for module, (W, grid, basis) in starts.items()
            for part, tensor in {
                "start": W, "scale": grid.scale, "zero": grid.zero, **basis.tensors()
            }.items()
        }  # fmt: skip
        self.save(block_name(name, block), tensors)

    def start(self, name: str, block: int, module: str) -> tuple[Tensor, QuantGrid, Basis]:
        """One layer of a quantizer pass: weights to round [out, in], their grid and basis."""
        tensors = self.some(block_name(name, block), f"{module}.")
        grid = QuantGrid(self._bits, tensors["scale"], tensors["zero"])
        return tensors["start"], grid, basis_from(tensors)


def stage_name(stage: str) -> str:
    return f"stage-{stage}"


def block_name(name: str, block: int) -> str:
    return f"{name}-{block:04d}"
