"""Runs of DL-QAT on models in memory."""

from pathlib import Path
from types import SimpleNamespace

from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models.blocks import block_linears, decoder_blocks
from backend.quantization.config import DLQATConfig
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import QuantizationPlan, plan
from backend.reporter import Reporter, SilentReporter

QUIET = SilentReporter()


def plan_of(config: DLQATConfig, model: PreTrainedModel) -> QuantizationPlan:
    """Return the plan of a config for a model."""
    blocks = range(len(decoder_blocks(model)))
    linears = [x for block in blocks for x in block_linears(model, block).values()]
    return plan(config, SimpleNamespace(linears=linears, architecture=type(model).__name__))


def begun(
    model: PreTrainedModel,
    folder: Path,
    rows: Tensor,
    calibration: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    heldout: Tensor | None = None,
    **fields: object,
) -> DLQAT:
    """Return a run in the folder. `rows` [n, length] are its training text, and its calibration
    text if there is no other."""
    config = DLQATConfig.model_validate({"precision": "float32", **fields})
    calibration, labels = (rows if x is None else x for x in (calibration, labels))
    return DLQAT(
        model,
        calibration,
        rows,
        labels,
        config,
        plan_of(config, model),
        Checkpoints(folder),
        seed,
        heldout=heldout,
    )


def finished(qat: DLQAT, reporter: Reporter = QUIET) -> DLQAT:
    """Make all stages of a run and return it."""
    for stage in qat.prepare(reporter):
        qat.make(stage, reporter)
    return qat
