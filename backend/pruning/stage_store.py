"""Checkpoints of an SDS run: the weights of every stage, block by block.

There is one checkpoint per pass and block, and the checkpoint `run`, which identifies the run.
Weights are float32, so that a resumed run continues bit for bit; weights that 16 bits represent
exactly take 16 bits.

    owl-0003/           facts.json only
    first-0003/         dense.safetensors first.safetensors control.safetensors redense.safetensors
    second-0003/        second.safetensors sds.safetensors
    first-blocks-0003/  first-blocks.safetensors
    sds-blocks-0003/    sds-blocks.safetensors

Each folder has a facts.json with the `BlockReport` of its pass.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models.block_offload import override_weights
from backend.models.blocks import decoder_blocks
from backend.pruning.config import PASS_OF, STAGE_LABELS, SDSStage
from backend.training.stage_store import StageStore, block_name

Weights = dict[str, Tensor]  # module name inside the block -> [out, in], float32


@dataclass
class BlockReport:
    """Measurements of one pass on one block.

    Attributes:
        errors: stage -> module -> relative output error.
        zeros: stage -> number of exact zeros in the block's linears.
        weights: number of weights in the block's linears.
        seconds: step -> duration.
        warnings: texts for the result of the run.
        outliers: share of weights whose score is far above the mean of their layer.
        reconstruction: "left": held-out error after block reconstruction divided by the error
            before; "factor": factor of its learning rate. Empty if not measured.
    """

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outliers: float = 0.0
    reconstruction: dict[str, float] = field(default_factory=dict)


class SDSStageStore:
    """Checkpoints of one SDS run."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._store = StageStore(checkpoints, _label)

    def holds(self, name: str, block: int) -> bool:
        """Return True if pass `name` has finished `block` and the checkpoint is intact."""
        return self._store.holds(block_name(name, block))

    def save(
        self, name: str, block: int, stages: dict[SDSStage, Weights], report: BlockReport
    ) -> None:
        """Store all stages of `block` that pass `name` produced, atomically."""
        files = {
            str(stage): {module: _narrow(W) for module, W in weights.items()}
            for stage, weights in stages.items()
        }
        self._store.save_files(block_name(name, block), files.items(), asdict(report))

    def report(self, name: str, block: int) -> BlockReport:
        """Report of pass `name` on `block`; the pass must have finished that block."""
        return BlockReport(**self._store.facts(block_name(name, block)))

    def weights(self, stage: SDSStage, block: int, device: str = "cpu") -> Weights:
        """Load the weights of `block` at `stage`.

        Raises:
            NotFoundError: the run has not reached that stage, or its file is damaged.
        """
        weights = load_file(self.require(stage, block), device=device)
        return {module: W.float() for module, W in weights.items()}

    def require(self, stage: SDSStage, block: int) -> Path:
        """Path of the file of `block` at `stage`.

        Raises:
            NotFoundError: the run has not reached that stage, or its file is damaged.
        """
        return self._store.require(block_name(PASS_OF[stage], block), stage)


def _label(name: str, file: str) -> str:
    pass_name, _, block = name.rpartition("-")
    stage = file if file in STAGE_LABELS else pass_name
    return f"{STAGE_LABELS.get(stage, f'The {pass_name} pass')} of block {int(block)}"


def _narrow(W: Tensor) -> Tensor:
    """Convert `W` to 16 bits if that changes no value."""
    halves = (W.to(dtype) for dtype in (torch.float16, torch.bfloat16))
    return next((half for half in halves if torch.equal(half.float(), W)), W)


def install(model: PreTrainedModel, checkpoints: Checkpoints, stage: SDSStage) -> None:
    """Load the weights of `stage` into `model`.

    Raises:
        NotFoundError: the run in `checkpoints` has not produced this stage.
    """
    store = SDSStageStore(checkpoints)
    for block in range(len(decoder_blocks(model))):
        store.require(stage, block)
    override_weights(model, lambda block: store.weights(stage, block, str(model.device)))
