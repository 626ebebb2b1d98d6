"""Tiny random models of every architecture family, built in milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

LENGTH, WINDOW = 24, 8
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
OPT_SIZES = {
    **{k: v for k, v in SIZES.items() if k not in ("intermediate_size", "num_key_value_heads")},
    "ffn_dim": 48,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, layer_types=MIXED
    ),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=WINDOW, layer_types=MIXED
    ),
    "phi": lambda: PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "phi3": lambda: Phi3Config(**SIZES),
    "opt": lambda: OPTConfig(**OPT_SIZES, word_embed_proj_dim=32),
    "opt-350m": lambda: OPTConfig(**OPT_SIZES, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt2": lambda: GPT2Config(
        vocab_size=96,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


@pytest.fixture(params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make() -> Callable[..., PreTrainedModel]:
    """Builds a random model of a family or config, in training mode, to be given back so."""

    def build(config: str | PreTrainedConfig, **options: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        config = CONFIGS[config]() if isinstance(config, str) else config
        return AutoModelForCausalLM.from_config(config, **options).train()

    return build


@pytest.fixture
def model(family: str, make: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make(family)


@pytest.fixture
def tokens() -> torch.Tensor:
    """[5, LENGTH]: in batches of 4 there is a short one."""
    return torch.randint(3, 96, (5, LENGTH), generator=torch.Generator().manual_seed(1))
