"""The config of a DL-QAT run."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from backend.export.formats import Format
from backend.quantization.config import STAGE_LABELS, DLQATConfig, DLQATStage, export_order
from jobs.fields.model import ModelConfig
from jobs.fields.processes import ProcessesConfig
from jobs.fields.quality import QualityConfig
from jobs.fields.text import TextConfig
from jobs.fields.types import CorpusName
from jobs.kind import JobConfig

NAME, SAME = "dlqat", "same"
NOT_QUANTIZED = (DLQATStage.DENSE, DLQATStage.LORA)
QUANTIZED = [str(stage) for stage in STAGE_LABELS if stage not in NOT_QUANTIZED]
ExportedStage: TypeAlias = Literal["auto", *QUANTIZED]  # type: ignore[valid-type]


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, ProcessesConfig, JobConfig):
    """Model, texts and settings of the method."""

    training_text: CorpusName = Field(
        SAME,
        title="Training text",
        description="same: the calibration text. A .jsonl file of instructions with answers: the "
        "loss is taken over the answers alone.",
    )
    format: Format = Field(
        "compressed-tensors",
        title="Export format",
        description="compressed-tensors: plain transformers loads it. gptq, gptq_v2: for GPTQ "
        "kernels. slimscope: our own, for grids with offsets. dense: for any program, at the dense "
        "size.",
    )
    packed: bool = Field(
        True,
        title="Time packed decoding",
        description="Measure tokens per second of the dense model and of the exported one on "
        "packed weights, both in bfloat16. CPU only.",
        json_schema_extra={"advanced": True},
    )
    keep: ExportedStage = Field(
        "auto",
        title="Stage exported",
        description="auto: DL-QAT, or the best stage of this run by the order of methods.",
        json_schema_extra={"advanced": True},
    )

    @property
    def kept(self) -> str:
        """The stage that is exported."""
        if self.keep != "auto":
            return str(self.keep)
        order = [*export_order(), *reversed(QUANTIZED)]
        return next((s for s in order if s in self.stages), DLQATStage.DLQAT)
