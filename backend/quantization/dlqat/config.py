"""Settings of DL-QAT: the source of form, CLI, API and stored record. Does not import torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from backend.models.layer_names import read_names
from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES, GridType

PROCESSES = "processes"  # a field of jobs: how many train together changes no checkpoint

SpaceName: TypeAlias = Literal[*DECLARED_RANGE_SEARCHES]  # type: ignore[valid-type]
ADVANCED: JsonDict = {"advanced": True}


class DLQATStage(StrEnum):
    """The models a run makes, besides those of quantizers in plugins. The same names are used in
    tables, charts and files."""

    DENSE = "dense"
    RTN = "rtn"
    GPTQ = "gptq"
    BLOCKS = "block-wise"
    M_ONLY = "m-only"
    LORA_ONLY = "lora-only"
    DLQAT = "dlqat"
    DLQAT_KD = "dlqat-kd"
    LORA = "lora"
    LORA_GPTQ = "lora-gptq"


def _contradicted(field: str, why: str) -> PydanticCustomError:
    """The error of a setting that another one rules out, to be told beside it."""
    return PydanticCustomError("contradicted", "{why}", {"field": field, "why": why})


def _post_training() -> dict[str, str]:
    """Quantizer -> label, the best last."""
    facts = {name: each.facts for name, each in DECLARED_QUANTIZERS.items()}
    order = sorted(facts, key=lambda name: float(facts[name].get("export_rank", 0)))
    return {name: str(facts[name].get("label", name)) for name in order}


POST_TRAINING = _post_training()
STAGE_LABELS: dict[str, str] = {  # in order
    DLQATStage.DENSE: "Dense",
    **POST_TRAINING,
    DLQATStage.BLOCKS: "Block-wise training",
    DLQATStage.M_ONLY: "Magnitudes only",
    DLQATStage.LORA_ONLY: "LoRA in the rounding only",
    DLQATStage.DLQAT: "DL-QAT",
    DLQATStage.DLQAT_KD: "DL-QAT, distilled",
    DLQATStage.LORA: "LoRA, not quantised (control)",
    DLQATStage.LORA_GPTQ: "LoRA, then GPTQ",
}

TRAINED = (  # inside the rounding
    DLQATStage.M_ONLY,
    DLQATStage.LORA_ONLY,
    DLQATStage.DLQAT,
    DLQATStage.DLQAT_KD,
)


def export_order() -> list[str]:
    """Quantized stages, in the order in which one is chosen for export."""
    trained = [DLQATStage.DLQAT, DLQATStage.DLQAT_KD, DLQATStage.LORA_ONLY, DLQATStage.M_ONLY]
    return [
        *trained,
        DLQATStage.BLOCKS,
        *(stage for stage in reversed(POST_TRAINING) if can_be_packed(stage)),
    ]


def can_be_packed(stage: str) -> bool:
    """Whether formats of packed weights can hold a stage."""
    declared = DECLARED_QUANTIZERS.get(stage)
    return declared is None or bool(declared.facts.get("saved", True))


class DLQATConfig(BaseModel):
    """Weight-decomposed low-rank quantisation-aware training (EMNLP 2024, industry track). Defaults
    the available text of the paper does not give are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: int = Field(
        3, ge=2, le=8, title="Bits", description="Per weight.", json_schema_extra={"unit": "bits"}
    )
    group_size: int = Field(
        64,
        ge=0,
        le=65536,
        title="Group size",
        description="Neighbouring inputs that share a scale, a zero-point and a magnitude. 0: one "
        "group per row (per channel).",
        json_schema_extra={"unit": "weights"},
    )
    grid: GridType = Field(
        "symmetric",
        title="Grid",
        description="symmetric: the zero-point is the middle code. zero-point: a whole one per "
        "group; fewer programs can load the result. offset: any real one, as in GGUF's Q4_1.",
    )
    rank: int = Field(
        16,
        ge=0,
        le=1024,
        title="Rank",
        description="Of the low-rank matrices A and B inside the rounding. 0: no low-rank update.",
    )
    magnitude: bool = Field(
        True,
        title="Train magnitudes",
        description="One factor m per group, after the rounding.",
        json_schema_extra=ADVANCED,
    )
    steps: int = Field(
        40,
        ge=1,
        le=100_000,
        title="Training steps",
        description="Optimiser steps per trained variant.",
    )
    batch: int = Field(
        4,
        ge=1,
        le=1024,
        title="Batch size",
        description="Training sequences in one forward pass.",
        json_schema_extra={"unit": "sequences"},
    )
    length: int = Field(
        256,
        ge=16,
        le=131072,
        title="Sequence length",
        description="Of the training text.",
        json_schema_extra={"unit": "tokens"},
    )

    gptq: bool = Field(True, title="GPTQ", description="Baseline: layer-wise error compensation.")
    lora: bool = Field(
        True,
        title="LoRA control",
        description="The dense model fine-tuned on the same text, not quantised: its distance to "
        "DL-QAT is the cost of quantisation.",
    )
    distil: bool = Field(
        False,
        title="DL-QAT by distillation",
        description="A second DL-QAT run that learns from the dense model's predictions, so it "
        "cannot gain from the text itself.",
    )
    rtn: bool = Field(
        True,
        title="RTN",
        description="Baseline: round to nearest on a min-max grid.",
        json_schema_extra=ADVANCED,
    )
    text_loss: bool = Field(
        True,
        title="DL-QAT on the text",
        description="The method itself, trained by next-token prediction.",
        json_schema_extra=ADVANCED,
    )
    m_only: bool = Field(
        False,
        title="Magnitudes only",
        description="Ablation: codes are fixed, only m is trained.",
        json_schema_extra=ADVANCED,
    )
    lora_only: bool = Field(
        False,
        title="LoRA in the rounding only",
        description="Ablation: m is fixed at 1.",
        json_schema_extra=ADVANCED,
    )
    lora_gptq: bool = Field(
        False,
        title="LoRA, then GPTQ",
        description="Baseline: the control, merged and quantised by GPTQ. The fair comparison on "
        "the same text.",
        json_schema_extra=ADVANCED,
    )

    block_epochs: int = Field(
        0,
        ge=0,
        le=50,
        title="Block-wise training",
        description="Rival: epochs over the calibration segments in which all weights of a block "
        "are trained to its dense outputs, as in EfficientQAT's first stage. 0: not made.",
        json_schema_extra={"unit": "epochs", **ADVANCED},
    )
    block_rate: float = Field(
        5e-4,
        gt=0,
        le=0.1,
        title="Learning rate of block-wise training",
        description="Of the weights; scales are trained more slowly.",
        json_schema_extra=ADVANCED,
    )
    quantizers: str = Field(
        "",
        max_length=300,
        title="Further quantisers",
        description="Baselines, separated by commas: gptq-order, hqq, awq, rotated, rotated-gptq, "
        "and those of plugins.",
        json_schema_extra=ADVANCED,
    )
    start: Literal["rounded", "gptq", "block-wise"] = Field(
        "gptq",
        title="Initialization",
        description="Training starts from the dense weights (rounded), from those GPTQ has "
        "compensated, or from the result of block-wise training, which itself starts from GPTQ.",
        json_schema_extra=ADVANCED,
    )
    space: SpaceName = Field(
        "weighted",
        title="Range search",
        description="How scales and zero-points are chosen. minmax: the whole range. mse: clipped "
        "for the least squared error. weighted: the same, inputs weighted by their energy. lsq: "
        "then learned as in LSQ+.",
        json_schema_extra=ADVANCED,
    )
    layers: str = Field(
        "*",
        max_length=1000,
        title="Layers quantised",
        description="Layer names, comma-separated, * as wildcard: *.down_proj in every block.",
        examples=["*", "mlp.*", "*.q_proj, *.v_proj"],
        json_schema_extra=ADVANCED,
    )
    exclude: str = Field(
        "",
        max_length=1000,
        title="Layers left dense",
        description="Layer names, comma-separated, * as wildcard: 0.* is all of block 0.",
        examples=["0.*", "*.down_proj"],
        json_schema_extra=ADVANCED,
    )
    keep_zeros: bool = Field(
        False,
        title="Keep zeros",
        description="Zero weights of a pruned model stay 0.",
        json_schema_extra=ADVANCED,
    )
    alpha: float = Field(
        32.0,
        gt=0,
        le=4096,
        title="Alpha",
        description="The low-rank update is scaled by alpha / rank.",
        json_schema_extra=ADVANCED,
    )
    rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate of A and B",
        description="AdamW with a cosine schedule.",
        json_schema_extra=ADVANCED,
    )
    rate_m: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate of m",
        description="m is relative: 0.001 changes a scale by about 0.1 % per step.",
        json_schema_extra=ADVANCED,
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        title="Warm-up",
        description="Share of the steps with a rising learning rate.",
        json_schema_extra=ADVANCED,
    )
    clip: float = Field(
        1.0,
        gt=0,
        le=1e6,
        title="Gradient clip",
        description="Maximum gradient norm.",
        json_schema_extra=ADVANCED,
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=1024,
        title="Gradient accumulation steps",
        description="Takes less memory than a larger batch.",
        json_schema_extra=ADVANCED,
    )
    checkpointing: bool = Field(
        False,
        title="Gradient checkpointing",
        description="Recompute activations in the backward pass: less memory, a third slower.",
        json_schema_extra=ADVANCED,
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Forward precision",
        description="Of training and calibration. auto: bfloat16 where the hardware supports it. "
        "Codes are always computed in float32.",
        json_schema_extra=ADVANCED,
    )
    stored: Literal["float16", "bfloat16", "float32"] = Field(
        "float16",
        title="Stored precision",
        description="Of scales, embeddings and norms in the saved model, rounded before any "
        "quantised stage is measured.",
        json_schema_extra=ADVANCED,
    )
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        title="Damping",
        description="Added to the Hessian diagonal (GPTQ), relative to the mean input energy.",
        json_schema_extra=ADVANCED,
    )
    calibration_batch: int = Field(
        8,
        ge=1,
        le=256,
        title="Calibration batch size",
        description="Also of the evaluation.",
        json_schema_extra={"unit": "segments", **ADVANCED},
    )
    save_every: int = Field(
        10,
        ge=1,
        le=10_000,
        title="Checkpoint interval",
        description="A killed run repeats at most this many steps.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    pictures: int = Field(
        5,
        ge=2,
        le=20,
        title="Training snapshots",
        description="How often magnitudes, scales and errors of all groups are recorded.",
        json_schema_extra=ADVANCED,
    )

    @property
    def stages(self) -> list[str]:
        """The models a run with this config makes, in order; those others build on included."""
        chosen: dict[str, bool] = {
            DLQATStage.DENSE: True,
            DLQATStage.RTN: self.rtn,
            DLQATStage.GPTQ: self.gptq,
            DLQATStage.BLOCKS: self.block_epochs > 0,
            DLQATStage.M_ONLY: self.m_only,
            DLQATStage.LORA_ONLY: self.lora_only,
            DLQATStage.DLQAT: self.text_loss,
            DLQATStage.DLQAT_KD: self.distil,
            DLQATStage.LORA: self.lora or self.lora_gptq,
            DLQATStage.LORA_GPTQ: self.lora_gptq,
            **dict.fromkeys(read_names(self.quantizers), True),
        }
        return [stage for stage in STAGE_LABELS if chosen.get(stage)]

    @property
    def identity(self) -> str:
        """The config as JSON, as it identifies the checkpoints of a run."""
        return self.model_dump_json(exclude={PROCESSES})

    @property
    def needs_energies(self) -> bool:
        """Whether a range search before training weights inputs by their energy."""
        weighted = DECLARED_RANGE_SEARCHES[self.space].facts.get("needs_energy", False)
        return self.start == "rounded" and weighted and self._starts

    @property
    def needs_gptq(self) -> bool:
        """Whether GPTQ runs: as a stage, or as initialization."""
        return self.gptq or (self.start != "rounded" and self._starts)

    @property
    def _starts(self) -> bool:
        """Whether a stage begins with `start`."""
        return any(stage in (*TRAINED, DLQATStage.BLOCKS) for stage in self.stages)

    def trains(self, stage: str) -> tuple[bool, bool]:
        """Whether `stage` trains A and B, and whether it trains m."""
        return self.rank > 0 and stage != DLQATStage.M_ONLY, stage == DLQATStage.M_ONLY or (
            self.magnitude and stage != DLQATStage.LORA_ONLY
        )

    @model_validator(mode="after")
    def _what_it_starts_from_is_made(self) -> Self:
        if self.start == "block-wise" and not self.block_epochs:
            raise _contradicted(
                "start", "Training starts from block-wise training, which has no epochs"
            )
        return self

    @model_validator(mode="after")
    def _zeros_are_on_the_grid(self) -> Self:
        if self.keep_zeros and self.grid == "offset":
            raise _contradicted("grid", "It does not contain 0, so it cannot keep zeros")
        for name in read_names(self.quantizers) if self.keep_zeros else ():
            if not DECLARED_QUANTIZERS[name].facts.get("keeps_zeros", True):
                raise _contradicted("quantizers", f"{name} mixes weights: it cannot keep zeros")
        return self

    @field_validator("quantizers")
    @classmethod
    def _quantizers_exist(cls, text: str) -> str:
        names = read_names(text)
        if unknown := [name for name in names if name not in DECLARED_QUANTIZERS]:
            known = ", ".join(DECLARED_QUANTIZERS)
            raise ValueError(f"There is no quantiser {unknown[0]!r}. Choose from: {known}.")
        return ", ".join(names)
