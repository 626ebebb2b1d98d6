"""Options of SDS, from which form, CLI, API and stored record are made. Does not import torch."""

from collections.abc import Collection
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import field_validator

from backend.budget import allocation
from backend.models.layer_names import LayerNames
from backend.options import Dtype, Options, option
from backend.pruning.pattern import PatternField, read_overrides
from backend.pruning.pruners import DECLARED_PRUNERS

PrunerName: TypeAlias = Literal[*DECLARED_PRUNERS]  # type: ignore[valid-type]


class SDSStage(StrEnum):
    """Stages of a run, in order. Tables, charts and files use the same names."""

    DENSE = "dense"
    FIRST = "first"  # after the first pruning: W_sparse
    CONTROL = "control"  # first pruning + adjustment, mask fixed: the baseline SDS must beat
    REDENSE = "redense"  # after the re-dense step: W_redense
    SECOND = "second"  # after the second pruning alone: W_sparse-2nd
    SDS = "sds"  # second pruning + weight adjustment: W_SDS
    FIRST_BLOCKS = "first-blocks"  # block reconstruction of the control, or of the first pruning
    SDS_BLOCKS = "sds-blocks"  # block reconstruction of the second pruning, adjusted or not


class SDSPass(StrEnum):
    """Passes of a run over the decoder blocks, in order. Their checkpoints have the same names."""

    OUTLIERS = "owl"
    FIRST = "first"
    SECOND = "second"
    FIRST_BLOCKS = "first-blocks"
    SDS_BLOCKS = "sds-blocks"


PASS_OF = {  # stage -> the pass that produces it
    SDSStage.DENSE: SDSPass.FIRST,
    SDSStage.FIRST: SDSPass.FIRST,
    SDSStage.CONTROL: SDSPass.FIRST,
    SDSStage.REDENSE: SDSPass.FIRST,
    SDSStage.SECOND: SDSPass.SECOND,
    SDSStage.SDS: SDSPass.SECOND,
    SDSStage.FIRST_BLOCKS: SDSPass.FIRST_BLOCKS,
    SDSStage.SDS_BLOCKS: SDSPass.SDS_BLOCKS,
}
RECONSTRUCTED = (SDSStage.FIRST_BLOCKS, SDSStage.SDS_BLOCKS)
# Stages that can become the result of the run, simplest first.
CANDIDATES = (SDSStage.FIRST, SDSStage.SECOND, SDSStage.SDS, *RECONSTRUCTED)
STAGE_LABELS: dict[str, str] = {
    SDSStage.DENSE: "Dense",
    SDSStage.FIRST: "First pruning",
    SDSStage.CONTROL: "First pruning + adjustment (control)",
    SDSStage.REDENSE: "Re-dense",
    SDSStage.SECOND: "Second pruning, not adjusted",
    SDSStage.SDS: "Second pruning (SDS)",
    SDSStage.FIRST_BLOCKS: "First pruning, blocks reconstructed",
    SDSStage.SDS_BLOCKS: "SDS, blocks reconstructed",
}


def heldout_stages(stages: Collection[SDSStage]) -> list[SDSStage]:
    """Filter for the stages whose held-out loss is measured: the candidates and their control."""
    return [stage for stage in stages if stage in (*CANDIDATES, SDSStage.CONTROL)]


STEP_LABELS: dict[str, str] = {  # the keys are part of stored metric names
    "outliers": "search for outliers",
    "inputs": "forward passes and Grams",
    "pruning": "pruning",
    "redense": "re-dense step",
    "control": "adjustment of the control",
    "sds": "weight adjustment",
    "blocks": "block reconstruction",
    "statistics": "statistics",
    "checkpoints": "checkpoints",
    "heldout": "held-out losses",
}


class SDSConfig(Options):
    """Options of Sparse-Dense-Sparse pruning (COLING 2025).

    Defaults are the paper's where it gives them, and ours elsewhere."""

    pattern: PatternField = option(
        "2:4", "Pattern", validate_default=True, examples=["2:4", "4:8", "50%"]
    )
    """n:m keeps n of every m inputs; a percentage is the share of weights to drop."""
    exclude: LayerNames = option(
        "",
        "Layers left dense",
        examples=["0.*", "*.down_proj"],
        advanced=True,
    )
    """Comma-separated layer names with * as wildcard: 0.* is all of block 0, *.down_proj is that
    layer in every block."""
    overrides: LayerNames = option(
        "",
        "Pattern overrides",
        examples=["mlp.down_proj=4:8, self_attn.*=50%"],
        advanced=True,
    )
    """Comma-separated name=pattern; the last match wins."""
    allocation: str = option(
        "uniform",
        "Sparsity allocation",
        max_length=60,
        examples=["uniform", "owl", "budget:50%"],
        advanced=True,
    )
    """owl: blocks with more outliers stay denser, at the same mean sparsity. budget:50% replaces
    the pattern and allocates that sparsity by the model's sensitivity profile."""
    base: PrunerName = option("wanda", "Pruner")
    """Algorithm for both prunings, of the dense and of the re-dense model."""
    until: Literal["first", "sds"] = option("sds", "Stop after", advanced=True)
    """first: the first pruning and its control only. sds: the full method."""
    redense_steps: int = option(20, "Re-dense steps", ge=1, le=2000, unit="steps", advanced=True)
    """Fewer steps stay closer to the pruned weights; more steps undo the pruning."""
    adjust: Literal["soft", "fixed", "off"] = option("soft", "Weight adjustment", advanced=True)
    """soft: update the mask at every step. fixed: keep the mask. off: no adjustment."""
    adjust_steps: int = option(30, "Adjustment steps", ge=1, le=2000, unit="steps", advanced=True)
    """Steps of iterative hard thresholding toward the outputs of the dense layer."""
    control: bool = option(False, "Fixed-mask control", advanced=True)
    """Also adjust the first pruning with its mask fixed; SDS has to beat this baseline."""
    damping: float = option(0.01, "Damping", gt=0, le=1, advanced=True)
    """Added to the diagonal of the Hessian, as a share of the mean input energy. Ignored by pruners
    without a Hessian."""
    reconstruct: int = option(0, "Block reconstruction", ge=0, le=50, unit="epochs")
    """Epochs over the calibration segments that train the remaining weights of each block toward
    the outputs of the dense block. 0: off."""
    reconstruct_rate: float = option(
        0.01, "Reconstruction learning rate", gt=0, le=1, advanced=True
    )
    """Learning rate of Adam with a cosine schedule, relative to the size of the weights: 0.01 moves
    them by about 1 % per step. Divided by 4, up to three times, for blocks whose held-out error
    does not fall."""
    batch: int = option(8, "Calibration batch size", ge=1, le=256, unit="segments", advanced=True)
    """Larger batches are faster and take more memory."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Precision of the calibration passes. auto: bfloat16 where the hardware supports it. Solvers
    always use float32."""
    activations: Literal["auto", "memory", "disk"] = option(
        "auto", "Hidden-state storage", advanced=True
    )
    """Storage of hidden states between blocks. auto: on disk if they would take a quarter of the
    memory."""

    @property
    def stages(self) -> list[SDSStage]:
        """Stages of a run with this config, in order."""
        full_method = self.until == "sds"
        enabled = {
            SDSStage.CONTROL: self.control,
            SDSStage.REDENSE: full_method,
            SDSStage.SECOND: full_method,
            SDSStage.SDS: full_method and self.adjust != "off",
            SDSStage.FIRST_BLOCKS: self.reconstruct and (self.control or not full_method),
            SDSStage.SDS_BLOCKS: self.reconstruct and full_method,
        }
        return [stage for stage in SDSStage if enabled.get(stage, True)]

    @property
    def passes(self) -> list[SDSPass]:
        """Passes over the decoder blocks, in order."""
        needed = {PASS_OF[stage] for stage in self.stages}
        if self.allocation == "owl":
            needed.add(SDSPass.OUTLIERS)
        return [block_pass for block_pass in SDSPass if block_pass in needed]

    @property
    def streams(self) -> int:
        """Maximum number of hidden-state streams in a pass: the sparse model's, and the dense
        model's during a reconstruction."""
        return 2 if self.reconstruct else 1

    @field_validator("allocation")
    @classmethod
    def _validate_allocation(cls, text: str) -> str:
        return allocation(text, "uniform", "owl")

    @field_validator("overrides")
    @classmethod
    def _normalize_overrides(cls, text: str) -> str:
        return ", ".join(f"{name}={pattern}" for name, pattern in read_overrides(text))
