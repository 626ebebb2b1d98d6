"""Runs of DL-QAT on models in memory."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.models.blocks import all_linears
from backend.models.families.experts import split_experts
from backend.quantization.config import DLQATConfig
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import QuantizationPlan, plan
from backend.reporter import Reporter, SilentReporter

QUIET = SilentReporter()


def plan_of(config: DLQATConfig, model: PreTrainedModel) -> QuantizationPlan:
    """Return the plan of a config for a model."""
    facts = SimpleNamespace(linears=all_linears(model), architecture=type(model).__name__)
    return plan(config, facts)


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


def begun_mixture(folder: Path, **fields: object) -> DLQAT:
    """Return a run of a mixture of eight experts on segments of three tokens."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=8,
        num_experts_per_tok=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    split_experts(model)
    rows = torch.randint(64, (6, 3), generator=torch.Generator().manual_seed(0))
    few = {"group_size": 8, "start": "rounded", "range_search": "minmax", "stages": "dlqat"}
    return begun(model, folder, rows, **few | fields)


def finished(qat: DLQAT, reporter: Reporter = QUIET) -> DLQAT:
    """Make all stages of a run and return it."""
    for stage in qat.prepare(reporter):
        qat.make(stage, reporter)
    return qat
