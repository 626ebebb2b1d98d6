"""The config of a DL-QAT run."""

from typing import Literal, TypeAlias

from backend.export.formats import Format
from backend.options import option
from backend.quantization.config import STAGE_LABELS, DLQATConfig, DLQATStage, can_be_packed
from jobs.fields.quality import QualityConfig
from jobs.fields.text import TextConfig
from jobs.fields.types import CorpusName, ModelConfig
from jobs.kind import JobConfig

NAME, SAME = "dlqat", "same"
NOT_QUANTIZED = (DLQATStage.DENSE, DLQATStage.LORA)
QUANTIZED = [str(stage) for stage in STAGE_LABELS if stage not in NOT_QUANTIZED]
ExportedStage: TypeAlias = Literal["auto", *QUANTIZED]  # type: ignore[valid-type]


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, JobConfig):
    """Model, texts and settings of the method."""

    training_text: CorpusName = option(SAME, "Training text")
    """same: the calibration text. A .jsonl file of instructions with answers: the loss is taken
    over the answers alone."""
    format: Format = option("compressed-tensors", "Export format")
    """compressed-tensors: plain transformers loads it. gptq, gptq_v2: for GPTQ kernels. slimscope:
    our own, for grids with offsets. dense: for any program, at the dense size."""
    packed: bool = option(True, "Time packed decoding", advanced=True)
    """Measure tokens per second of the dense model and of the exported one on packed weights, both
    in bfloat16. CPU only."""
    keep: ExportedStage = option("auto", "Stage kept", advanced=True)
    """The one that is exported. auto: the best on held-out text; of those that are not told apart,
    the simplest."""

    @property
    def candidates(self) -> list[str]:
        """The stages one of which is kept, from the simplest on: those the format can hold."""
        made = [stage for stage in self.stages if stage not in NOT_QUANTIZED]
        if self.keep != "auto":
            made = [stage for stage in made if stage == self.keep]
        return [stage for stage in made if self.format == "dense" or can_be_packed(stage)]
