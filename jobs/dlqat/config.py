"""The config of a DL-QAT run."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from backend.export.formats import Format
from backend.methods.dlqat.config import DLQATConfig, DLQATStage
from jobs.fields.model import ModelConfig
from jobs.fields.quality import QualityConfig
from jobs.fields.text import TextConfig
from jobs.fields.types import CorpusName
from jobs.kind import JobConfig

NAME, SAME = "dlqat", "same"
EXPORT_ORDER = (
    DLQATStage.DLQAT,
    DLQATStage.DLQAT_KD,
    DLQATStage.LORA_ONLY,
    DLQATStage.M_ONLY,
    DLQATStage.GPTQ,
    DLQATStage.MSE,
    DLQATStage.RTN,
)


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, JobConfig):
    """Model, texts and settings of the method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        "kernels. dense: for any program, at the dense size.",
    )
    packed: bool = Field(
        True,
        title="Time packed decoding",
        description="Measure tokens per second of the dense model and of the exported one on "
        "packed weights, both in bfloat16. CPU only.",
        json_schema_extra={"advanced": True},
    )
    keep: Literal[
        "auto", "rtn", "mse", "gptq", "m-only", "lora-only", "dlqat", "dlqat-kd",
        "lora-rtn", "lora-gptq",
    ] = Field(
        "auto",
        title="Stage exported",
        description="auto: DL-QAT, or the best stage of this run by the order of methods.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip

    @property
    def kept(self) -> DLQATStage:
        """The stage that is exported."""
        if self.keep != "auto":
            return DLQATStage(self.keep)
        return next((s for s in EXPORT_ORDER if s in self.stages), DLQATStage.LORA_RTN)
