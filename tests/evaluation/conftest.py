"""Fixtures: the toy model, random models, their texts, and a reporter that requests a stop."""

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)

from backend.models.loading import LoadedModel, load
from backend.reporter import SilentReporter
from backend.text.slices import TextSlice

VOCABULARY = 300
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=24,
        init_std=0.3,
    ),
    "gemma2": Gemma2Config(  # caps its logits after the head
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=3.0,
        initializer_range=0.3,
    ),
}


def built(family: str) -> PreTrainedModel:
    """A random model, always the same."""
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


def text_of(rows: Tensor, bos: bool = False) -> TextSlice:
    sizes = rows.numel(), 1000  # tokens, bytes
    return TextSlice(rows, "toystories", "evaluation", 0, rows.shape[1], bos, "", *sizes)


class Impatient(SilentReporter):
    """Reporter that requests a stop after `patience` checks."""

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience

    def should_stop(self) -> bool:
        self.patience -= 1
        return self.patience < 0


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return load("toy")


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(3, VOCABULARY, (5, 40), generator=torch.Generator().manual_seed(0))
