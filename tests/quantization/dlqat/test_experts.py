"""Experts that some steps do not reach: a run that was stopped goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError
from backend.models.families.experts import split_experts
from backend.quantization.dlqat.config import DLQATConfig, DLQATStage
from backend.quantization.dlqat.pipeline import DLQAT
from backend.reporter import SilentReporter


def mixture() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=8, num_experts_per_tok=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    split_experts(model)
    return model


def started(folder: Path) -> DLQAT:
    config = DLQATConfig(
        steps=6, batch=1, length=16, group_size=8, rank=2, save_every=1, start="rounded",
        space="minmax", gptq=False, lora=False, rtn=False, precision="float32", pictures=2,
    )  # fmt: skip
    rows = torch.randint(64, (6, 3), generator=torch.Generator().manual_seed(0))
    return DLQAT(mixture(), rows, rows, rows, config, Checkpoints(folder))


def test_a_stopped_run_of_a_mixture_goes_on_to_the_same_bits(recorder, tmp_path: Path) -> None:
    whole, told = started(tmp_path / "whole"), recorder()
    whole.make(DLQATStage.DLQAT, told)
    with pytest.raises(CancelledError):
        stop = recorder(stop=lambda r: sum(name == "loss@dlqat" for name, *_ in r.metrics) >= 2)
        started(tmp_path / "cut").make(DLQATStage.DLQAT, stop)
    again = started(tmp_path / "cut")
    again.make(DLQATStage.DLQAT, SilentReporter())
    before, after = (run.converted(DLQATStage.DLQAT) for run in (whole, again))
    for name, layer in before.items():
        assert torch.equal(layer.codes, after[name].codes)
        assert torch.equal(layer.grid.scale, after[name].grid.scale)


def test_blocks_whose_trained_experts_a_segment_does_not_reach_are_trained(tmp_path: Path) -> None:
    """Of three tokens a segment, none goes to most of the eight experts."""
    config = DLQATConfig(
        layers="*.experts.7.*", block_epochs=1, group_size=8, start="rounded", space="minmax",
        gptq=False, lora=False, rtn=False, text_loss=False, precision="float32",
    )  # fmt: skip
    rows = torch.randint(64, (6, 3), generator=torch.Generator().manual_seed(0))
    qat = DLQAT(mixture(), rows, rows, rows, config, Checkpoints(tmp_path))
    qat.make(DLQATStage.BLOCKS, SilentReporter())
    for layer in qat.converted(DLQATStage.BLOCKS).values():
        assert layer.grid.scale.isfinite().all()
