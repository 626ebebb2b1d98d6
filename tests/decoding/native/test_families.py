"""Random models of the families that the native decoder runs: the logits of transformers in
float32, of a prompt, token by token beyond the windows, and over a tree under mask and windows."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from backend.decoding.draft_tree import Tree
from backend.decoding.native.families import unsupported
from backend.decoding.native.model import NativeModel
from backend.decoding.target_model import TargetModel
from backend.drafters.adaptation import ClonedLayer, NativeLayer
from tests.conftest import ALL
from tests.decoding.native.test_decoder import LLAMA3, LONG, SIZES, built, distance
from tests.kernels.sets import VARIANTS, kernel_set

TREE = Tree([(0,), (1,), (2,), (0, 0), (1, 0), (1, 1), (1, 0, 0), (1, 0, 0, 0)])
PROMPT, LENGTH = 9, 40


def sizes(chance: random.Random) -> dict[str, Any]:
    """Of a random model with a small context, at times of one block."""
    kv = chance.choice([1, 2, 3])
    return {
        "vocab_size": chance.choice([97, 512, 1003]),
        "hidden_size": 48 * chance.choice([1, 2]),
        "num_hidden_layers": chance.choice([1, 2, 4]),
        "num_attention_heads": 6,
        "intermediate_size": 16 * chance.randint(2, 12),
        "num_key_value_heads": kv,
        "head_dim": chance.choice([16, 32, 80, 256]),
        "max_position_embeddings": 64,
        "tie_word_embeddings": chance.random() < 0.5,
        "pad_token_id": 0,
    }


def gemma(chance: random.Random) -> dict[str, Any]:
    """Sizes of Gemma 2 and 3: windows of some layers, and a scale of queries of their own."""
    found = sizes(chance)
    types = ["sliding_attention", "full_attention"]
    layers = [chance.choice(types) for _ in range(found["num_hidden_layers"])]
    return {
        **found,
        "layer_types": layers,
        "sliding_window": chance.randint(2, 30),
        "query_pre_attn_scalar": chance.randint(8, 300),
    }


def phi(chance: random.Random) -> dict[str, Any]:
    """Sizes of Phi-3, whose heads share the width, rotated in part."""
    found = sizes(chance) | {"hidden_size": 192, "sliding_window": chance.choice([None, 11])}
    del found["head_dim"]
    partial = chance.choice([0.25, 0.5, 0.75, 1.0])
    half = int(32 * partial) // 2
    factors = {"short_factor": [1.0 + n / half for n in range(half)], "long_factor": [9.0] * half}
    rope = {"partial_rotary_factor": partial, "rope_theta": 1e4, "rope_type": "default"}
    return found | {
        "rope_parameters": chance.choice(
            [
                rope,
                {
                    **LONG,
                    **rope,
                    **factors,
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 64,
                },
            ]
        )
    }


LARGE = "256,000 tokens"
FAMILIES: dict[str, Callable[[random.Random], PretrainedConfig]] = {
    "llama": lambda r: LlamaConfig(
        **sizes(r),
        attention_bias=r.random() < 0.5,
        mlp_bias=r.random() < 0.5,
        rope_parameters=r.choice([LLAMA3, None]),
    ),
    "mistral": lambda r: MistralConfig(**sizes(r), sliding_window=r.randint(2, 30)),
    "qwen2": lambda r: Qwen2Config(
        **sizes(r), use_sliding_window=True, sliding_window=r.randint(2, 30), max_window_layers=1
    ),
    "qwen3": lambda r: Qwen3Config(**sizes(r)),
    "gemma": lambda r: GemmaConfig(**sizes(r)),
    "gemma2": lambda r: Gemma2Config(
        **gemma(r),
        attn_logit_softcapping=r.choice([None, 2.0, 50.0]),
        final_logit_softcapping=r.choice([None, 0.2, 1.0]),
    ),
    "gemma3": lambda r: Gemma3TextConfig(
        **gemma(r), rope_scaling={"rope_type": "linear", "factor": 1.0 + r.randint(0, 7)}
    ),
    "phi3": lambda r: Phi3Config(**phi(r)),
    LARGE: lambda r: GemmaConfig(**sizes(r) | {"vocab_size": 256_000, "num_hidden_layers": 1}),
}


CASES = [
    (name, variant)
    for name in FAMILIES
    for variant in VARIANTS
    if ALL or name != LARGE or variant == "best"
]


def along(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [n, V] of the model's own forward."""
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


@pytest.mark.parametrize(("name", "variant"), CASES)
@torch.inference_mode()
def test_logits_are_those_of_transformers(name: str, variant: str) -> None:
    """On each instruction set for another random model."""
    config = FAMILIES[name](random.Random(f"{name} {VARIANTS.index(variant)}"))
    model = built(config)
    assert unsupported(model) == ""
    native, generator = NativeModel(model, kernel_set(variant)), torch.manual_seed(1)
    ids = torch.randint(config.vocab_size, (LENGTH + len(TREE),), generator=generator)
    context, nodes = ids[:LENGTH], ids[LENGTH:]
    rounded = along(model, context)
    cache = native.new_cache(LENGTH + len(TREE))
    parts = [context[:PROMPT], *context[PROMPT:].split(1)]
    logits = torch.cat([native.forward(part, cache, read_out=len(part))[1] for part in parts])
    _, tree = native.forward(nodes, cache, TREE, len(nodes))
    exact = model.float()
    expected = along(exact, context)
    allowed = 1.1 * distance(rounded, expected) + 1e-4
    assert distance(logits, expected) < allowed < 0.1
    paths = [torch.cat([context, nodes[TREE.lineage(node)]]) for node in range(len(TREE))]
    branches = torch.stack([along(exact, path)[-1] for path in paths])
    assert distance(tree, branches) < 1.5 * allowed


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "phi3"])
@torch.inference_mode()
def test_its_layers_are_cloned_for_drafters(name: str) -> None:
    model = built(FAMILIES[name](random.Random(f"{name} 0")))
    target = TargetModel(model)
    assert target.native, target.decoder
    states = torch.randn(1, LENGTH, target.width)
    for block in range(target.layers):
        cloned = ClonedLayer(model, block, torch.float32)
        found = NativeLayer(cloned, target)(states)
        assert distance(found, cloned(states)) < 0.05  # rounded to 8 bits


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GemmaConfig(**sizes(random.Random(0)), use_bidirectional_attention=True), "bidirectional"),
        (GemmaConfig(**sizes(random.Random(0)), hidden_act="relu"), "relu, not silu or gelu"),
        (
            LlamaConfig(
                **sizes(random.Random(0)),
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            ),
            "dynamic",
        ),
        (
            LlamaConfig(**SIZES | {"hidden_size": 40, "num_attention_heads": 5}, head_dim=8),
            "multiples of 16",
        ),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "gelu"),
    ],
)
def test_what_it_does_not_run_is_left_to_pytorch(config: PretrainedConfig, why: str) -> None:
    model = built(config)
    assert why in unsupported(model)
    assert "float32" in unsupported(model.float())


def test_rotary_positions_that_would_change_are_refused() -> None:
    rope = {**LONG, "original_max_position_embeddings": 32}
    fields = phi(random.Random(0)) | {"rope_parameters": rope | {"partial_rotary_factor": 0.25}}
    target = TargetModel(built(Phi3Config(**fields, original_max_position_embeddings=32)))
    assert target.native and target.context == 32 and "longrope" in target.limit
    cache = target.new_cache(48)
    target.native.read(torch.arange(3, 35), cache)
    with pytest.raises(ValueError, match="do not fit"):
        target.native.forward(torch.tensor([5]), cache)
