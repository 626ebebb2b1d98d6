"""Experts that some steps do not reach: a run that was stopped goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel

from backend.errors import CancelledError
from backend.models.families.experts import split_experts
from backend.quantization.dlqat.pipeline import DLQAT
from tests.quantization.dlqat.runs import QUIET, begun


def mixture() -> PreTrainedModel:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=8, num_experts_per_tok=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    split_experts(model)
    return model


def started(folder: Path, **fields: object) -> DLQAT:
    rows = torch.randint(64, (6, 3), generator=torch.Generator().manual_seed(0))
    few = {"group_size": 8, "start": "rounded", "space": "minmax", "stages": "dlqat"}
    return begun(mixture(), folder, rows, **few | fields)


def test_a_stopped_run_of_a_mixture_goes_on_to_the_same_bits(recorder, tmp_path: Path) -> None:
    fields = {"steps": 6, "batch": 1, "length": 16, "rank": 2}
    whole = started(tmp_path / "whole", **fields)
    whole.make("dlqat", QUIET)
    with pytest.raises(CancelledError):
        stop = recorder(stop=lambda r: sum(name == "loss@dlqat" for name, *_ in r.metrics) >= 2)
        started(tmp_path / "cut", **fields).make("dlqat", stop)
    again = started(tmp_path / "cut", **fields)
    again.make("dlqat", QUIET)
    before, after = (run.converted("dlqat") for run in (whole, again))
    for name, layer in before.items():
        assert torch.equal(layer.codes, after[name].codes)
        assert torch.equal(layer.grid.scale, after[name].grid.scale)


def test_blocks_whose_trained_experts_a_segment_does_not_reach_are_trained(tmp_path: Path) -> None:
    """Of three tokens a segment, none goes to most of the eight experts."""
    qat = started(tmp_path, exclude="self_attn.*, *.experts.[0-6].*", stages="block-wise")
    qat.make("block-wise", QUIET)
    layers = qat.converted("block-wise")
    assert all(".experts.7." in name for name in layers)
    for layer in layers.values():
        assert layer.grid.scale.isfinite().all()
