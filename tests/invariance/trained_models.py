"""Tiny models of many shapes, trained on the spot on the stories of the built-in toy."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backend.models.families.experts import split_experts
from backend.models.loading import load
from backend.models.sources.toy.stories import stories
from benchmarks.toy import encode
from tests.models.tiny_models import FAMILIES

TRAIN_SEED, BATCH, RATE = 3, 8, 3e-3
TIED = {"tie_word_embeddings": True}
CAPPED = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # title -> family, what is another way
    "llama": ("llama", {}),
    "llama, tied": ("llama", TIED),
    "llama, one block": ("llama", {"num_hidden_layers": 1}),
    "llama, 8 narrow blocks": (
        "llama",
        {
            "hidden_size": 32,
            "num_hidden_layers": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    ),
    "llama, 2 wide blocks": (
        "llama",
        {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
    ),
    "qwen2 (biases)": ("qwen2", TIED),
    "qwen3 (head norms)": ("qwen3", TIED),
    "gemma2 (caps, windows)": ("gemma2", {**TIED, **CAPPED}),
    "gemma3 (windows, head norms)": ("gemma3_text", TIED),
    "gpt2": ("gpt2", {}),
    "mixtral (experts)": ("mixtral", {}),
}


def texts(count: int, length: int, seed: int = TRAIN_SEED) -> Tensor:
    """Token ids [count, length] of stories, by the tokenizer of the toy."""
    found = encode(load("toy").tokenizer, stories(seed, count * length // 60))
    return found[: count * length].view(count, length)


def trained(title: str, steps: int, length: int = 64) -> PreTrainedModel:
    """A model of one of `SHAPES` after so many steps; deterministic."""
    family, changed = SHAPES[title]
    fields = {**FAMILIES[family], **changed}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    rows = texts(512, length)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for step in range(steps):
        chosen = rows[(step * BATCH + torch.arange(BATCH)) % len(rows)]
        model(input_ids=chosen, labels=chosen, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    split_experts(model.eval().requires_grad_(False))
    return model
