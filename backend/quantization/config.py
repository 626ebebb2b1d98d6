"""Config of a quantization run, and integer formats of layers, written as "int4-g64". Does not
import torch."""

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
FORMAT_PATTERN = re.compile(r"int(\d{1,2})(?:-g(\d{1,5}))?")
RangeSearchName: TypeAlias = Literal[*DECLARED_RANGE_SEARCHES]  # type: ignore[valid-type]
ALPHA = 32.0  # the low-rank update is scaled by ALPHA / rank
CALIBRATION_BATCH = 8  # maximum calibration segments in one forward pass
AUDIT_TOKENS = 4096  # tokens to measure layer errors on; models with experts use the whole text
BLOCK_EPOCHS = 4  # epochs of block-wise training


@dataclass(frozen=True)
class IntegerFormat:
    """Integer format of a layer: bits per weight, and inputs per group (0: one group per row)."""

    bits: int
    group: int = 0

    @classmethod
    def parse(cls, text: str) -> "IntegerFormat":
        """Parse "int4-g64" or "int8".

        Raises:
            ValueError: the text is not a format; the message shows the syntax.
        """
        match = FORMAT_PATTERN.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text[:40]!r} is not a format. Write int4-g64, for example.")
        if not MIN_BITS <= int(match[1]) <= MAX_BITS:
            raise ValueError(f"{match[1]} bits are not offered. Choose {MIN_BITS} to {MAX_BITS}.")
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "")


def read_overrides(text: str) -> tuple[tuple[str, IntegerFormat], ...]:
    """Parse a list such as "mlp.down_proj=int4-g32, 0.*=int8-g64" into names and formats.

    Raises:
        ValueError: the text is not a list of this form; the message shows the syntax.
    """
    return read_assignments(text, IntegerFormat.parse, "format", "mlp.down_proj=int4-g64")


class DLQATStage(StrEnum):
    """Stages of a run, except for quantizers in plugins, as named in tables, charts and files."""

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


POST_TRAINING = {  # quantizer -> label; the best quantizer is last
    name: str(declaration.facts.get("label", name))
    for name, declaration in sorted(
        DECLARED_QUANTIZERS.items(), key=lambda item: float(item[1].facts.get("export_rank", 0))
    )
}
STAGE_LABELS: dict[str, str] = {  # in the order in which stages run
    DLQATStage.DENSE: "Dense",
    **POST_TRAINING,
    DLQATStage.BLOCKS: "Block-wise training",
    DLQATStage.M_ONLY: "Magnitudes only",
    DLQATStage.LORA_ONLY: "Low-rank update only",
    DLQATStage.DLQAT: "DL-QAT",
    DLQATStage.DLQAT_KD: "DL-QAT, distilled",
    DLQATStage.LORA: "LoRA, not quantized (control)",
    DLQATStage.LORA_GPTQ: "LoRA, then GPTQ",
}

StageName: TypeAlias = Literal[*list(STAGE_LABELS)[1:]]  # type: ignore[valid-type]


def _split_names(value: Any) -> Any:
    return read_names(value) if isinstance(value, str) else value


def _with_prerequisites(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages with their prerequisites, in execution order and without duplicates."""
    prerequisites = {DLQATStage.LORA} if DLQATStage.LORA_GPTQ in stages else set()
    return tuple(stage for stage in STAGE_LABELS if stage in {*stages, *prerequisites})


# A list or comma-separated text; stored as text.
Stages = Annotated[
    tuple[StageName, ...],
    BeforeValidator(_split_names),
    AfterValidator(_with_prerequisites),
    PlainSerializer(", ".join, return_type=str),
    WithJsonSchema({"type": "string"}),
]
TRAINED = (  # stages that train with quantized weights in the forward pass
    DLQATStage.M_ONLY,
    DLQATStage.LORA_ONLY,
    DLQATStage.DLQAT,
    DLQATStage.DLQAT_KD,
)


def can_be_packed(stage: str) -> bool:
    """Return True if a packed export format can store the result of the stage."""
    declaration = DECLARED_QUANTIZERS.get(stage)
    return declaration is None or bool(declaration.facts.get("saved", True))


class DLQATConfig(Options):
    """Config of weight-decomposed low-rank quantization-aware training (EMNLP 2024, industry
    track). Where the available text of the paper states no value, the default is ours."""

    bits: int = option(3, "Bits", ge=2, le=8, unit="bits")
    """Bits per weight, 2 to 8. At 4 bits, the result is close to the dense model. 3 bits need
    training, and small models become unusable at 2 bits."""
    group_size: int = option(64, "Group size", ge=0, le=65536, unit="weights")
    """Neighboring inputs that share a scale, a zero-point and a magnitude. 0: one group per output
    channel."""
    grid: GridType = option("symmetric", "Grid")
    """symmetric: the zero-point is the middle code. zero-point: an integer per group; fewer
    programs can load the result. offset: a real number per group, as in GGUF's Q4_1."""
    allocation: str = option(
        "uniform",
        "Bit allocation",
        max_length=60,
        examples=["uniform", "budget:3.25bits", "budget:loss 2%"],
        advanced=True,
    )
    """uniform: the same bits and group size everywhere. A budget mixes formats by the model's
    sensitivity profile instead: budget:80MB (file size), budget:3.25bits (per weight, including
    scales), budget:6.5ms (per token in the native decoder) or budget:loss 2% (perplexity)."""
    overrides: LayerNames = option(
        "",
        "Format overrides",
        examples=["mlp.down_proj=int4-g32, 0.*=int8-g64"],
        advanced=True,
    )
    """Comma-separated list of name=format; the last matching entry applies. int8-g64 means 8 bits
    in groups of 64."""
    embedding: Literal["auto", "dense", "8", "6", "4"] = option("auto", "Embedding and head")
    """Bits of the token embedding and the head, which are rounded to nearest. dense: not quantized.
    auto: 8 bits if the export format allows mixed widths, otherwise dense."""
    stages: Stages = option("gptq, dlqat", "Stages", validate_default=True, many=True)
    """Models to produce and measure: post-training quantizers, block-wise training, DL-QAT on text
    (dlqat) or by distillation (dlqat-kd), its ablations m-only and lora-only, and LoRA on the same
    text, unquantized (lora) or quantized afterwards (lora-gptq)."""
    rank: int = option(16, "Rank", ge=0, le=1024)
    """Rank of the low-rank update, which is added before rounding. 0: no update."""
    steps: int = option(40, "Training steps", ge=1, le=100_000)
    """Optimizer steps per trained stage."""
    batch: int = option(4, "Batch size", ge=1, le=1024, unit="sequences")
    """Training sequences in one forward pass."""
    length: int = option(256, "Sequence length", ge=16, le=131072, unit="tokens")
    """Length of a training sequence."""
    start: Literal["rounded", "gptq", "block-wise"] = option(
        "gptq", "Initialization", advanced=True
    )
    """Initial weights of training. rounded: the dense weights. gptq: the weights after GPTQ.
    block-wise: the result of block-wise training, which starts from GPTQ."""
    range_search: RangeSearchName = option("weighted", "Range search", advanced=True)
    """Method that sets scales and zero-points. minmax: covers all weights. mse: clips the range to
    minimize the squared error. weighted: weights each error by the mean square of its input. lsq:
    starts from weighted and learns the scales, as in LSQ+."""
    exclude: LayerNames = option(
        "",
        "Layers left dense",
        examples=["0.*", "*.down_proj"],
        advanced=True,
    )
    """Comma-separated layer names with * as wildcard. 0.* is all of block 0."""
    keep_zeros: bool = option(False, "Keep zeros", advanced=True)
    """Keep the zero weights of a pruned model at 0."""
    learning_rate: float = option(1e-3, "Learning rate", gt=0, le=1, advanced=True)
    """Peak learning rate of A, B and m, for AdamW with a cosine schedule. Magnitudes are relative:
    at 0.001, a scale changes by about 0.1 % per step."""
    accumulate: int = option(1, "Gradient accumulation steps", ge=1, le=1024, advanced=True)
    """Batches per optimizer step. Uses less memory than a larger batch size."""
    checkpointing: bool = option(False, "Gradient checkpointing", advanced=True)
    """Recompute activations in the backward pass. Saves memory, but takes a third longer."""
    precision: Dtype = option("auto", "Forward precision", advanced=True)
    """Precision of training and calibration. auto: bfloat16 if the hardware supports it. Codes are
    always computed in float32."""
    saved_precision: Literal["float16", "bfloat16", "float32"] = option(
        "float16", "Saved precision", advanced=True
    )
    """Precision of scales, embeddings and norms in the saved model. Quantized stages are measured
    in this precision."""

    @field_validator("allocation")
    @classmethod
    def _check_allocation(cls, text: str) -> str:
        return allocation(text, "uniform")

    @field_validator("overrides")
    @classmethod
    def _normalize_overrides(cls, text: str) -> str:
        return ", ".join(f"{name}={width}" for name, width in read_overrides(text))

    @property
    def quantizers(self) -> tuple[str, ...]:
        """Stages made by post-training quantizers."""
        return tuple(stage for stage in self.stages if stage in POST_TRAINING)

    @property
    def needs_energies(self) -> bool:
        """True if the range search before training needs input energies."""
        weighted = DECLARED_RANGE_SEARCHES[self.range_search].facts.get("needs_energy", False)
        return self.start == "rounded" and weighted and self._uses_start

    @property
    def needs_gptq(self) -> bool:
        """True if GPTQ runs, as a stage or as initialization."""
        return DLQATStage.GPTQ in self.stages or (self.start != "rounded" and self._uses_start)

    @property
    def _uses_start(self) -> bool:
        """True if a stage is initialized according to `start`."""
        return any(stage in (*TRAINED, DLQATStage.BLOCKS) for stage in self.stages)

    def needs_dense(self, stage: str) -> bool:
        """Return True if the training of `stage` needs the dense weights in memory."""
        needs = stage in (DLQATStage.LORA, DLQATStage.DLQAT_KD)
        return needs or self.keep_zeros or self.start == "rounded"

    def trains(self, stage: str) -> tuple[bool, bool]:
        """Return two flags: whether `stage` trains A and B, and whether it trains m."""
        if stage == DLQATStage.LORA:
            return True, False
        return self.rank > 0 and stage != DLQATStage.M_ONLY, stage != DLQATStage.LORA_ONLY

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.start == "block-wise" and DLQATStage.BLOCKS not in self.stages:
            raise _field_error(
                "start", "Training starts from block-wise training, which is not among the stages"
            )
        if self.keep_zeros and self.grid == "offset":
            raise _field_error("grid", "A grid with offsets cannot represent 0 exactly")
        for name in self.quantizers if self.keep_zeros else ():
            if not DECLARED_QUANTIZERS[name].facts.get("keeps_zeros", True):
                raise _field_error("stages", f"{name} mixes weights, so it cannot keep zeros")
        return self


def _field_error(field: str, why: str) -> PydanticCustomError:
    """Return a validation error that is shown next to `field`."""
    return PydanticCustomError("contradicted", "{why}", {"field": field, "why": why})
