"""Settings of SDS: the source of form, CLI, API and stored record. Does not import torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from backend.budget import allocation
from backend.models.layer_names import MAX_LETTERS, LayerNames
from backend.pruning.layer_selection import read_overrides
from backend.pruning.pattern import PatternField
from backend.pruning.pruners import DECLARED_PRUNERS

PrunerName: TypeAlias = Literal[*DECLARED_PRUNERS]  # type: ignore[valid-type]
ADVANCED: JsonDict = {"advanced": True}


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


class SDSConfig(BaseModel):
    """Sparse-Dense-Sparse pruning (COLING 2025). Defaults the paper does not give are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: PatternField = Field(
        "2:4",  # as text, which forms and the CLI show
        validate_default=True,
        title="Pattern",
        description="n:m keeps n of every m inputs; a percentage is the share of weights dropped.",
        examples=["2:4", "4:8", "50%"],
    )
    exclude: LayerNames = Field(
        "",
        max_length=MAX_LETTERS,
        title="Layers left dense",
        description="Layer names, comma-separated, * as wildcard: 0.* is all of block 0, "
        "*.down_proj that layer of every block.",
        examples=["0.*", "*.down_proj"],
        json_schema_extra=ADVANCED,
    )
    overrides: str = Field(
        "",
        max_length=MAX_LETTERS,
        title="Pattern overrides",
        description="name=pattern, comma-separated; the last match counts.",
        examples=["mlp.down_proj=4:8, self_attn.*=50%"],
        json_schema_extra=ADVANCED,
    )
    allocation: str = Field(
        "uniform",
        max_length=60,
        title="Sparsity allocation",
        description="owl: blocks with more outliers stay denser, at the same mean sparsity. "
        "budget:50% spreads that sparsity by the model's sensitivity profile, in place of the "
        "pattern.",
        examples=["uniform", "owl", "budget:50%"],
        json_schema_extra=ADVANCED,
    )
    base: PrunerName = Field(
        "wanda", title="Pruner", description="Prunes the dense model, and then the re-dense one."
    )
    until: Literal["first", "sds"] = Field(
        "sds",
        title="Stop after",
        description="first: only the first pruning and its control. sds: the full method.",
        json_schema_extra=ADVANCED,
    )
    redense_steps: int = Field(
        20,
        ge=1,
        le=2000,
        title="Re-dense steps",
        description="Fewer steps stay closer to the pruned weights; more steps undo the pruning.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    adjust: Literal["soft", "fixed", "off"] = Field(
        "soft",
        title="Weight adjustment",
        description="soft: the mask is updated at every step. fixed: the mask is kept. off: none.",
        json_schema_extra=ADVANCED,
    )
    adjust_steps: int = Field(
        30,
        ge=1,
        le=2000,
        title="Adjustment steps",
        description="Iterative hard thresholding towards the outputs of the dense layer.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    control: bool = Field(
        True,
        title="Fixed-mask control",
        description="Also adjust the first pruning under its own mask: the baseline for SDS.",
        json_schema_extra=ADVANCED,
    )
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        title="Damping",
        description="Added to the Hessian diagonal by pruners that use it, relative to the mean "
        "input energy.",
        json_schema_extra=ADVANCED,
    )
    reconstruct: int = Field(
        0,
        ge=0,
        le=50,
        title="Block reconstruction",
        description="Epochs over the calibration segments in which the kept weights of each block "
        "are trained together, so that its outputs meet those of the dense model. 0: off.",
        json_schema_extra={"unit": "epochs"},
    )
    reconstruct_rate: float = Field(
        0.01,
        gt=0,
        le=1,
        title="Reconstruction learning rate",
        description="Of Adam with a cosine schedule, one segment per step; relative to the size "
        "of the weights of a row and a column: 0.01 moves them by about 1 % per step. Quartered, "
        "up to three times, for a block whose held-out error it does not lower.",
        json_schema_extra=ADVANCED,
    )
    batch: int = Field(
        8,
        ge=1,
        le=256,
        title="Calibration batch size",
        description="Larger is faster and takes more memory.",
        json_schema_extra={"unit": "segments", **ADVANCED},
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Forward precision",
        description="Of the calibration passes. auto: bfloat16 where the hardware supports it. "
        "Solvers always use float32.",
        json_schema_extra=ADVANCED,
    )
    activations: Literal["auto", "memory", "disk"] = Field(
        "auto",
        title="Hidden-state storage",
        description="Where hidden states are kept between blocks. auto: on disk if they would "
        "take a quarter of the memory.",
        json_schema_extra=ADVANCED,
    )

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
