"""Settings of a quantization run, the source of form, CLI, API and stored record, and bits and
group size of a layer as text: "int4-g64". Does not import torch."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from backend.budget import allocation
from backend.models.layer_names import LayerNames, read_assignments, read_names
from backend.options import Dtype, Options, option
from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES, GridType

MIN_BITS, MAX_BITS = 2, 8
SYNTAX = re.compile(r"int(\d{1,2})(?:-g(\d{1,5}))?")
SpaceName: TypeAlias = Literal[*DECLARED_RANGE_SEARCHES]  # type: ignore[valid-type]
ALPHA = 32.0  # the low-rank update is scaled by ALPHA / rank
CALIBRATION_BATCH = 8  # calibration segments in one forward pass, at most
AUDIT_TOKENS = 4096  # that errors of layers are read on, but for experts
BLOCK_EPOCHS = 4  # of block-wise training


@dataclass(frozen=True)
class Width:
    """How wide the codes of a layer are, and how many inputs share a scale; 0: the whole row."""

    bits: int
    group: int = 0

    @classmethod
    def parse(cls, text: str) -> "Width":
        """Parse "int4-g64" or "int8". Raises ValueError: it is neither, with the syntax."""
        match = SYNTAX.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text[:40]!r} is no width. Write int4-g64.")
        if not MIN_BITS <= int(match[1]) <= MAX_BITS:
            raise ValueError(f"{match[1]} bits are not offered: {MIN_BITS} to {MAX_BITS}.")
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "")


def read_overrides(text: str) -> tuple[tuple[str, Width], ...]:
    """Parse "mlp.down_proj=int4-g32, 0.*=int8-g64" into names and widths.

    Raises:
        ValueError: not such a list; the message shows the syntax.
    """
    return read_assignments(text, Width.parse, "format", "mlp.down_proj=int4-g64")


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


POST_TRAINING = {  # quantizer -> label, the best last
    name: str(each.facts.get("label", name))
    for name, each in sorted(
        DECLARED_QUANTIZERS.items(), key=lambda item: float(item[1].facts.get("export_rank", 0))
    )
}
STAGE_LABELS: dict[str, str] = {  # in order
    DLQATStage.DENSE: "Dense",
    **POST_TRAINING,
    DLQATStage.BLOCKS: "Block-wise training",
    DLQATStage.M_ONLY: "Magnitudes only",
    DLQATStage.LORA_ONLY: "LoRA in the rounding only",
    DLQATStage.DLQAT: "DL-QAT",
    DLQATStage.DLQAT_KD: "DL-QAT, distilled",
    DLQATStage.LORA: "LoRA, not quantized (control)",
    DLQATStage.LORA_GPTQ: "LoRA, then GPTQ",
}

StageName: TypeAlias = Literal[*list(STAGE_LABELS)[1:]]  # type: ignore[valid-type]


def _read(value: Any) -> Any:
    return read_names(value) if isinstance(value, str) else value


def _in_order(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, in the order they are made, with those others build on."""
    needed = {DLQATStage.LORA} if DLQATStage.LORA_GPTQ in stages else set()
    return tuple(stage for stage in STAGE_LABELS if stage in {*stages, *needed})


# a config field: a list, or a text with commas; stored as text
Stages = Annotated[
    tuple[StageName, ...],
    BeforeValidator(_read),
    AfterValidator(_in_order),
    PlainSerializer(", ".join, return_type=str),
    WithJsonSchema({"type": "string"}),
]
TRAINED = (  # inside the rounding
    DLQATStage.M_ONLY,
    DLQATStage.LORA_ONLY,
    DLQATStage.DLQAT,
    DLQATStage.DLQAT_KD,
)


def can_be_packed(stage: str) -> bool:
    """Whether formats of packed weights can hold a stage."""
    declared = DECLARED_QUANTIZERS.get(stage)
    return declared is None or bool(declared.facts.get("saved", True))


class DLQATConfig(Options):
    """Weight-decomposed low-rank quantization-aware training (EMNLP 2024, industry track). Defaults
    the available text of the paper does not give are ours."""

    bits: int = option(3, "Bits", ge=2, le=8, unit="bits")
    """Per weight: 2 to 8. 4: close to the dense model. 3: smaller, but poor unless trained. 2:
    small models break."""
    group_size: int = option(64, "Group size", ge=0, le=65536, unit="weights")
    """Neighboring inputs that share a scale, a zero-point and a magnitude. 0: one group per row
    (per channel)."""
    grid: GridType = option("symmetric", "Grid")
    """symmetric: the zero-point is the middle code. zero-point: a whole one per group; fewer
    programs can load the result. offset: any real one, as in GGUF's Q4_1."""
    allocation: str = option(
        "uniform",
        "Bit allocation",
        max_length=60,
        examples=["uniform", "budget:3.25bits", "budget:loss 2%"],
        advanced=True,
    )
    """uniform: the same bits and groups everywhere. budget:80MB (of the file), budget:3.25bits (a
    weight, scales included), budget:6.5ms (a token in the native decoder) or budget:loss 2% (of
    perplexity) mix formats by the model's sensitivity profile, in place of both."""
    overrides: LayerNames = option(
        "",
        "Format overrides",
        examples=["mlp.down_proj=int4-g32, 0.*=int8-g64"],
        advanced=True,
    )
    """name=format, comma-separated; the last match counts. int8-g64 is 8 bits in groups of 64."""
    embedding: Literal["auto", "stored", "8", "6", "4"] = option("auto", "Embedding and head")
    """Bits of the token embedding and of the head, rounded to nearest. stored: the stored
    precision. auto: 8 in the format slimscope, which holds them beside layers of other bits and
    becomes a GGUF file; stored in any other."""
    stages: Stages = option("gptq, dlqat", "Stages", validate_default=True, many=True)
    """The models to make and measure: post-training quantizers, block-wise training, DL-QAT on the
    text (dlqat) or by distillation (dlqat-kd), its ablations m-only and lora-only, and LoRA on the
    same text, not quantized (lora) or then quantized (lora-gptq)."""
    rank: int = option(16, "Rank", ge=0, le=1024)
    """Of the low-rank matrices A and B inside the rounding. 0: no low-rank update."""
    steps: int = option(40, "Training steps", ge=1, le=100_000)
    """Optimizer steps per trained variant."""
    batch: int = option(4, "Batch size", ge=1, le=1024, unit="sequences")
    """Training sequences in one forward pass."""
    length: int = option(256, "Sequence length", ge=16, le=131072, unit="tokens")
    """Of the training text."""
    start: Literal["rounded", "gptq", "block-wise"] = option(
        "gptq", "Initialization", advanced=True
    )
    """Training starts from the dense weights (rounded), from those GPTQ has compensated, or from
    the result of block-wise training, which itself starts from GPTQ."""
    space: SpaceName = option("weighted", "Range search", advanced=True)
    """How scales and zero-points are chosen. minmax: the whole range. mse: clipped for the least
    squared error. weighted: the same, inputs weighted by their energy. lsq: then learned as in
    LSQ+."""
    exclude: LayerNames = option(
        "",
        "Layers left dense",
        examples=["0.*", "*.down_proj"],
        advanced=True,
    )
    """Layer names, comma-separated, * as wildcard: 0.* is all of block 0."""
    keep_zeros: bool = option(False, "Keep zeros", advanced=True)
    """Zero weights of a pruned model stay 0."""
    rate: float = option(1e-3, "Learning rate", gt=0, le=1, advanced=True)
    """Of A, B and m: AdamW with a cosine schedule. m is relative: 0.001 changes a scale by about
    0.1 % per step."""
    accumulate: int = option(1, "Gradient accumulation steps", ge=1, le=1024, advanced=True)
    """Takes less memory than a larger batch."""
    checkpointing: bool = option(False, "Gradient checkpointing", advanced=True)
    """Recompute activations in the backward pass: less memory, a third slower."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Of training and calibration. auto: bfloat16 where the hardware supports it. Codes are always
    computed in float32."""
    stored: Literal["float16", "bfloat16", "float32"] = option(
        "float16", "Stored precision", advanced=True
    )
    """Of scales, embeddings and norms in the saved model, rounded before any quantized stage is
    measured."""

    @field_validator("allocation")
    @classmethod
    def _allocation_read(cls, text: str) -> str:
        return allocation(text, "uniform")

    @field_validator("overrides")
    @classmethod
    def _overrides_read(cls, text: str) -> str:
        return ", ".join(f"{name}={width}" for name, width in read_overrides(text))

    @property
    def quantizers(self) -> tuple[str, ...]:
        """The stages that post-training quantizers make."""
        return tuple(stage for stage in self.stages if stage in POST_TRAINING)

    @property
    def needs_energies(self) -> bool:
        """Whether a range search before training weights inputs by their energy."""
        weighted = DECLARED_RANGE_SEARCHES[self.space].facts.get("needs_energy", False)
        return self.start == "rounded" and weighted and self._starts

    @property
    def needs_gptq(self) -> bool:
        """Whether GPTQ runs: as a stage, or as initialization."""
        return DLQATStage.GPTQ in self.stages or (self.start != "rounded" and self._starts)

    @property
    def _starts(self) -> bool:
        """Whether a stage begins with `start`."""
        return any(stage in (*TRAINED, DLQATStage.BLOCKS) for stage in self.stages)

    def trains(self, stage: str) -> tuple[bool, bool]:
        """Whether `stage` trains A and B, and whether it trains m."""
        if stage == DLQATStage.LORA:
            return True, False
        return self.rank > 0 and stage != DLQATStage.M_ONLY, stage != DLQATStage.LORA_ONLY

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.start == "block-wise" and DLQATStage.BLOCKS not in self.stages:
            raise _contradicted(
                "start", "Training starts from block-wise training, which is not among the stages"
            )
        if self.keep_zeros and self.grid == "offset":
            raise _contradicted("grid", "It does not contain 0, so it cannot keep zeros")
        for name in self.quantizers if self.keep_zeros else ():
            if not DECLARED_QUANTIZERS[name].facts.get("keeps_zeros", True):
                raise _contradicted("stages", f"{name} mixes weights: it cannot keep zeros")
        return self


def _contradicted(field: str, why: str) -> PydanticCustomError:
    """The error of a setting that another one rules out, to be told beside it."""
    return PydanticCustomError("contradicted", "{why}", {"field": field, "why": why})
