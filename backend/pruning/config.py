"""Settings of SDS: the source of form, CLI, API and stored record. Does not import torch."""

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
    """The stages of a run, in order. The same names are used in tables, charts and files."""

    DENSE = "dense"
    FIRST = "first"  # after the first pruning: W_sparse
    CONTROL = "control"  # first pruning + adjustment, mask fixed: the baseline SDS must beat
    REDENSE = "redense"  # after the re-dense step: W_redense
    SECOND = "second"  # after the second pruning alone: W_sparse-2nd
    SDS = "sds"  # second pruning + weight adjustment: W_SDS
    FIRST_BLOCKS = "first-blocks"  # the first pruning, adjusted if there is a control, by blocks
    SDS_BLOCKS = "sds-blocks"  # the second pruning, adjusted or not, reconstructed by blocks


class SDSPass(StrEnum):
    """The passes of a run over the decoder blocks, in order; the names of their checkpoints."""

    OUTLIERS = "owl"
    FIRST = "first"
    SECOND = "second"
    FIRST_BLOCKS = "first-blocks"
    SDS_BLOCKS = "sds-blocks"


PASS_OF = {  # the pass that makes a stage
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
# one of which is kept, from the simplest on
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


def judged(stages: Collection[SDSStage]) -> list[SDSStage]:
    """Those of `stages` that read held-out text: the ones that can be kept, and their control."""
    return [stage for stage in stages if stage in (*CANDIDATES, SDSStage.CONTROL)]


STEP_LABELS: dict[str, str] = {  # part of stored metric names
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
    """Sparse-Dense-Sparse pruning (COLING 2025). Defaults the paper does not give are ours."""

    pattern: PatternField = option(
        "2:4", "Pattern", validate_default=True, examples=["2:4", "4:8", "50%"]
    )
    """n:m keeps n of every m inputs; a percentage is the share of weights dropped."""
    exclude: LayerNames = option(
        "",
        "Layers left dense",
        examples=["0.*", "*.down_proj"],
        advanced=True,
    )
    """Layer names, comma-separated, * as wildcard: 0.* is all of block 0, *.down_proj that layer of
    every block."""
    overrides: LayerNames = option(
        "",
        "Pattern overrides",
        examples=["mlp.down_proj=4:8, self_attn.*=50%"],
        advanced=True,
    )
    """name=pattern, comma-separated; the last match counts."""
    allocation: str = option(
        "uniform",
        "Sparsity allocation",
        max_length=60,
        examples=["uniform", "owl", "budget:50%"],
        advanced=True,
    )
    """owl: blocks with more outliers stay denser, at the same mean sparsity. budget:50% spreads
    that sparsity by the model's sensitivity profile, in place of the pattern."""
    base: PrunerName = option("wanda", "Pruner")
    """Prunes the dense model, and then the re-dense one."""
    until: Literal["first", "sds"] = option("sds", "Stop after", advanced=True)
    """first: only the first pruning and its control. sds: the full method."""
    redense_steps: int = option(20, "Re-dense steps", ge=1, le=2000, unit="steps", advanced=True)
    """Fewer steps stay closer to the pruned weights; more steps undo the pruning."""
    adjust: Literal["soft", "fixed", "off"] = option("soft", "Weight adjustment", advanced=True)
    """soft: the mask is updated at every step. fixed: the mask is kept. off: none."""
    adjust_steps: int = option(30, "Adjustment steps", ge=1, le=2000, unit="steps", advanced=True)
    """Iterative hard thresholding toward the outputs of the dense layer."""
    control: bool = option(False, "Fixed-mask control", advanced=True)
    """Also adjust the first pruning under its own mask: the baseline for SDS."""
    damping: float = option(0.01, "Damping", gt=0, le=1, advanced=True)
    """Added to the Hessian diagonal by pruners that use it, relative to the mean input energy."""
    reconstruct: int = option(0, "Block reconstruction", ge=0, le=50, unit="epochs")
    """Epochs over the calibration segments in which the kept weights of each block are trained
    together, so that its outputs meet those of the dense model. 0: off."""
    reconstruct_rate: float = option(
        0.01, "Reconstruction learning rate", gt=0, le=1, advanced=True
    )
    """Of Adam with a cosine schedule, one segment per step; relative to the size of the weights of
    a row and a column: 0.01 moves them by about 1 % per step. Quartered, up to three times, for a
    block whose held-out error it does not lower."""
    batch: int = option(8, "Calibration batch size", ge=1, le=256, unit="segments", advanced=True)
    """Larger is faster and takes more memory."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Of the calibration passes. auto: bfloat16 where the hardware supports it. Solvers always use
    float32."""
    activations: Literal["auto", "memory", "disk"] = option(
        "auto", "Hidden-state storage", advanced=True
    )
    """Where hidden states are kept between blocks. auto: on disk if they would take a quarter of
    the memory."""

    @property
    def stages(self) -> list[SDSStage]:
        """The stages a run with this config passes through, in order."""
        whole = self.until == "sds"
        optional = {
            SDSStage.CONTROL: self.control,
            SDSStage.REDENSE: whole,
            SDSStage.SECOND: whole,
            SDSStage.SDS: whole and self.adjust != "off",
            SDSStage.FIRST_BLOCKS: self.reconstruct and (self.control or not whole),
            SDSStage.SDS_BLOCKS: self.reconstruct and whole,
        }
        return [stage for stage in SDSStage if optional.get(stage, True)]

    @property
    def passes(self) -> list[SDSPass]:
        """The passes over the decoder blocks, in order."""
        made = {PASS_OF[stage] for stage in self.stages}
        if self.allocation == "owl":
            made.add(SDSPass.OUTLIERS)
        return [each for each in SDSPass if each in made]

    @property
    def streams(self) -> int:
        """How many streams of hidden states a pass holds at most: the sparse model's, and the dense
        one's in a reconstruction."""
        return 2 if self.reconstruct else 1

    @field_validator("allocation")
    @classmethod
    def _allocation_read(cls, text: str) -> str:
        return allocation(text, "uniform", "owl")

    @field_validator("overrides")
    @classmethod
    def _overrides_read(cls, text: str) -> str:
        return ", ".join(f"{name}={pattern}" for name, pattern in read_overrides(text))
