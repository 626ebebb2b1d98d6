"""What a person may choose about SDS. Imports no torch: the form, the CLI and the stored record
are all drawn from these fields."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from backend.methods.sds.layer_selection import read_overrides
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.pruners import DECLARED_PRUNERS
from backend.models.layer_names import read_names

PrunerName: TypeAlias = Literal[*DECLARED_PRUNERS]  # type: ignore[valid-type]
ADVANCED: JsonDict = {"advanced": True}


class SDSStage(StrEnum):
    """The states a model passes through, in order. The same names serve tables, charts, files."""

    DENSE = "dense"
    FIRST = "first"  # after the first pruning: W_sparse
    CONTROL = "control"  # first pruning + adjustment under its fixed mask: what SDS must beat
    REDENSE = "redense"  # after the re-dense step: W_redense
    SECOND = "second"  # after the second pruning alone: W_sparse-2nd
    SDS = "sds"  # second pruning + weight adjustment: W_SDS


STAGE_LABELS: dict[str, str] = {
    SDSStage.DENSE: "Dense",
    SDSStage.FIRST: "First pruning",
    SDSStage.CONTROL: "First pruning + adjustment (control)",
    SDSStage.REDENSE: "Re-dense",
    SDSStage.SECOND: "Second pruning, not adjusted",
    SDSStage.SDS: "Second pruning (SDS)",
}


STEP_LABELS: dict[str, str] = {
    "outliers": "search for outliers",
    "inputs": "forward passes and Grams",
    "pruning": "pruning",
    "redense": "re-dense step",
    "control": "adjustment of the control",
    "sds": "weight adjustment",
    "statistics": "statistics",
    "checkpoints": "checkpoints",
    "heldout": "held-out losses",
}


class SDSConfig(BaseModel):
    """Sparse-Dense-Sparse pruning (COLING 2025). Where the paper is silent the default is ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Field(
        "2:4",
        title="Pattern",
        description="n:m keeps n of every m inputs; a percentage drops that share of the weights.",
        examples=["2:4", "4:8", "50%"],
    )
    exclude: str = Field(
        "",
        max_length=1000,
        title="Layers left dense",
        description="Names with *, separated by commas: 0.* is all of block 0, *.down_proj that "
        "layer of every block.",
        examples=["0.*", "*.down_proj"],
        json_schema_extra=ADVANCED,
    )
    overrides: str = Field(
        "",
        max_length=1000,
        title="Patterns by layer",
        description="name=pattern, separated by commas; the last that fits a layer counts.",
        examples=["mlp.down_proj=4:8, self_attn.*=50%"],
        json_schema_extra=ADVANCED,
    )
    allocation: Literal["uniform", "owl"] = Field(
        "uniform",
        title="Sparsity of blocks",
        description="owl: blocks with more outliers stay denser, at the same mean. For "
        "percentages only.",
        json_schema_extra=ADVANCED,
    )
    owl_outlier: float = Field(
        5.0,
        gt=1,
        le=100,
        title="OWL outlier",
        description="So many times the mean score of its block makes a weight an outlier (M).",
        json_schema_extra=ADVANCED,
    )
    owl_spread: float = Field(
        0.08,
        gt=0,
        lt=0.5,
        title="OWL spread",
        description="Half the distance between the sparsest and the densest block (lambda).",
        json_schema_extra=ADVANCED,
    )
    order: Literal["block", "sub-block"] = Field(
        "block",
        title="Order of pruning",
        description="block: all layers of a block see it unpruned. sub-block: layers that read "
        "the same input are pruned together, and the next read what those leave.",
        json_schema_extra=ADVANCED,
    )
    base: PrunerName = Field(
        "wanda", title="First pruner", description="Scores the weights of the dense model."
    )
    until: Literal["first", "sds"] = Field(
        "sds",
        title="Stop after",
        description="first: the first pruner as it is, and its control. sds: the whole method.",
        json_schema_extra=ADVANCED,
    )
    redense: Literal["gram", "ridge", "sgd"] = Field(
        "gram",
        title="Re-dense solver",
        description="gram: accelerated proximal gradient on the Gram matrix (ours). ridge: closed "
        "form. sgd: the paper's stochastic gradient descent, slow.",
        json_schema_extra=ADVANCED,
    )
    redense_steps: int = Field(
        20,
        ge=1,
        le=2000,
        title="Re-dense steps",
        description="Few steps keep the memory of the first pruning; very many undo it.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    l1: float = Field(
        0.03,
        ge=0,
        le=10,
        title="L1 penalty",
        description="Relative to the mean input energy and the mean weight of the layer. For "
        "sgd as in the paper: times the mean of |W|, 0.1 there.",
        json_schema_extra=ADVANCED,
    )
    l2: float = Field(
        0.0,
        ge=0,
        le=10,
        title="L2 penalty",
        description="Relative to the mean input energy of the layer. For sgd as in the paper: "
        "times the mean of W^2, 0.1 there.",
        json_schema_extra=ADVANCED,
    )
    ridge: float = Field(
        0.3,
        gt=0,
        le=1000,
        title="Ridge pull",
        description="How strongly the ridge solver holds on to the sparse weights.",
        json_schema_extra=ADVANCED,
    )
    sgd_epochs: int = Field(
        200,
        ge=1,
        le=2000,
        title="SGD epochs",
        description="Passes over the calibration segments; only for the sgd solver.",
        json_schema_extra={"unit": "epochs", **ADVANCED},
    )
    sgd_rate: float = Field(
        0.1,
        gt=0,
        le=10,
        title="SGD learning rate",
        description="Only for the sgd solver; 0.1 in the paper.",
        json_schema_extra=ADVANCED,
    )
    inputs: Literal["sd", "dd", "kd"] = Field(
        "sd",
        title="Re-dense inputs",
        description="sd: activations of the sparse model (the paper's choice). dd: of the dense "
        "model. kd: of the blocks already re-densified.",
        json_schema_extra=ADVANCED,
    )
    second: Literal["base", "magnitude"] = Field(
        "base",
        title="Second pruner",
        description="The first pruner once more, or plain magnitude.",
        json_schema_extra=ADVANCED,
    )
    adjust: Literal["soft", "fixed", "off"] = Field(
        "soft",
        title="Weight adjustment",
        description="soft: the mask is chosen anew at every step. fixed: it stays. off: none.",
        json_schema_extra=ADVANCED,
    )
    adjust_steps: int = Field(
        30,
        ge=1,
        le=2000,
        title="Adjustment steps",
        description="Steps of iterative hard thresholding towards the dense layer's outputs.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    control: bool = Field(
        True,
        title="Fixed-mask control",
        description="Also adjust the first pruning under its own mask: what SDS has to beat.",
        json_schema_extra=ADVANCED,
    )
    holdout: float = Field(
        0.125,
        ge=0,
        le=0.5,
        title="Held-out share",
        description="Share of the calibration segments kept apart to decide whether the "
        "adjustment stays. 0 always keeps it.",
        json_schema_extra=ADVANCED,
    )
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        title="Damping",
        description="Share of the mean input energy added to the Hessian's diagonal (SparseGPT).",
        json_schema_extra=ADVANCED,
    )
    batch: int = Field(
        8,
        ge=1,
        le=256,
        title="Segments per forward pass",
        description="More is faster and takes more memory.",
        json_schema_extra={"unit": "segments", **ADVANCED},
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Forward precision",
        description="Of the calibration passes. auto: bfloat16 where the processor computes in "
        "it. Solving is always float32.",
        json_schema_extra=ADVANCED,
    )
    activations: Literal["auto", "memory", "disk"] = Field(
        "auto",
        title="Hidden states",
        description="Where they wait between two blocks. auto: on disk when they would fill a "
        "quarter of the memory.",
        json_schema_extra=ADVANCED,
    )

    @property
    def stages(self) -> list[SDSStage]:
        """The stages a run with this config passes through, in order."""
        first = [SDSStage.DENSE, SDSStage.FIRST, *([SDSStage.CONTROL] if self.control else [])]
        if self.until == "first":
            return first
        return [
            *first,
            SDSStage.REDENSE,
            SDSStage.SECOND,
            *([SDSStage.SDS] if self.adjust != "off" else []),
        ]

    @field_validator("pattern")
    @classmethod
    def _pattern_reads(cls, text: str) -> str:
        return str(Pattern.parse(text))

    @field_validator("overrides")
    @classmethod
    def _overrides_read(cls, text: str) -> str:
        return ", ".join(f"{name}={pattern}" for name, pattern in read_overrides(text))

    @field_validator("exclude")
    @classmethod
    def _exclude_reads(cls, text: str) -> str:
        return ", ".join(read_names(text))
