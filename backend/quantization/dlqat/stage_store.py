"""Checkpoints of a DL-QAT run.

energy-0003/     mean square of every input of one block
gptq-0003/       one block of a quantizer pass: weights to round and their grids
train-dlqat-0-1/  a training step: parameters and optimizer state
stage-dlqat/     a finished stage: codes, scales and zero-points of every layer, or A and B
.seconds-dlqat/  time it took, over all attempts that were not killed
audit-0003/      errors of all stages of one block
"""

from collections.abc import Mapping

from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.models.blocks import LinearWeight
from backend.quantization.bases import Basis, basis_from
from backend.quantization.config import STAGE_LABELS
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.plan import QuantizationPlan
from backend.training.stage_store import StageStore, block_name

Start = tuple[Tensor, QuantGrid, Basis]  # weights to round [out, in], their grid and basis


class DLQATStageStore(StageStore):
    """The checkpoints of one run; tensors are loaded to `device`."""

    def __init__(self, checkpoints: Checkpoints, plan: QuantizationPlan, device: str) -> None:
        super().__init__(checkpoints, _label, device)
        self._plan = plan

    def save_stage(self, stage: str, layers: Mapping[str, QuantizedWeight]) -> None:
        """Store every layer of a quantized stage."""
        tensors = {
            f"{name}.{part}": tensor
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        self.save(stage_name(stage), tensors)

    def quantized(self, stage: str, name: str) -> QuantizedWeight:
        """Layer `name` at `stage`."""
        bits, tensors = self._plan.settings(name).bits, self.tensors(stage_name(stage), f"{name}.")
        return quantized_from(name, bits, tensors)

    def save_starts(self, name: str, block: int, starts: Mapping[str, Start]) -> None:
        """Store one block of a quantizer pass, by module."""
        tensors = {
            f"{module}.{part}": tensor
            for module, (W, grid, basis) in starts.items()
            for part, tensor in {
                "start": W,
                "scale": grid.scale,
                "zero": grid.zero,
                **basis.tensors(),
            }.items()
        }
        self.save(block_name(name, block), tensors)

    def start(self, name: str, linear: LinearWeight) -> Start:
        """One layer of quantizer pass `name`."""
        tensors = self.tensors(block_name(name, linear.block), f"{linear.module}.")
        bits = self._plan.settings(linear.name).bits
        grid = QuantGrid(bits, tensors["scale"], tensors["zero"])
        return tensors["start"], grid, basis_from(tensors)


def stage_name(stage: str) -> str:
    """The checkpoint of a finished stage."""
    return f"stage-{stage}"


def _label(name: str, file: str) -> str:
    return STAGE_LABELS.get(name.removeprefix("stage-"), name)
