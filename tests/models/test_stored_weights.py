"""Weights read straight from files are those of the loaded model, whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from backend.export.reading import StoredLinears
from backend.models.blocks import block_linears
from backend.models.facts import facts_from
from backend.models.sources.catalogue import inspect
from backend.models.sources.headers import read_config, read_headers
from backend.models.sources.spec import TOY_FOLDER


def assert_same(folder: Path, model: PreTrainedModel, blocks: int) -> None:
    facts = facts_from("here", read_config(folder), read_headers(folder))
    stored = StoredLinears(folder, facts.linears)
    for index in range(blocks):
        expected = {linear.name: linear.read() for linear in block_linears(model, index).values()}
        found = {linear.name: weight for linear, weight in stored.block(index)}
        assert found.keys() == expected.keys() and found
        for name, weight in found.items():
            assert weight.is_contiguous() and torch.equal(weight, expected[name]), name


def test_every_architecture(model: PreTrainedModel, family: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model, 3)


def test_shards_half_precision_and_a_missing_prefix(
    make: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = make("gpt2").to(torch.bfloat16)
    model.base_model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    names = read_headers(tmp_path)
    assert not any(name.startswith("transformer.") for name in names)
    config = read_config(tmp_path) | {"architectures": ["GPT2LMHeadModel"]}
    stored = StoredLinears(tmp_path, facts_from("here", config, names).linears)
    expected = {linear.name: linear.read() for linear in block_linears(model, 1).values()}
    for linear, weight in stored.block(1):
        assert torch.equal(weight, expected[linear.name])
        assert weight.shape == (linear.rows, linear.columns)


def test_one_block_is_read_at_a_time() -> None:
    facts = inspect("toy")
    stored = StoredLinears(TOY_FOLDER, facts.linears)
    assert {linear.block for linear, _ in stored.block(2)} == {2}
    assert sum(1 for b in range(facts.blocks) for _ in stored.block(b)) == len(facts.linears)
