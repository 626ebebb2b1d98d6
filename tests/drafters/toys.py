"""Small target models and drafters for the tests of speculative decoding; each is built once."""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from backend.decoding.serving.request import DecodeStep
from backend.decoding.target_model import TargetModel
from backend.drafters.config import DrafterConfig
from backend.drafters.registry import Drafter, build_drafter
from backend.models.loading import load
from backend.text.chat_template import prompt_ids
from backend.text.prompts import training_prompts

END = 0  # of the toy
SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MORE = {"intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "multi-head": LlamaConfig(**SIZES, **MORE, num_key_value_heads=4),
    "grouped": LlamaConfig(**SIZES, **MORE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, **MORE, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, **MORE, num_key_value_heads=2, head_dim=8),
    "neox": GPTNeoXConfig(**SIZES, **MORE),
    "gpt2": GPT2Config(
        vocab_size=128, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=512),
    "windows": MistralConfig(**SIZES, **MORE, num_key_value_heads=2, sliding_window=12),
    "capped, some windows": Gemma2Config(
        **SIZES,
        **MORE,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        final_logit_softcapping=3.0,
    ),
    "divided": GraniteConfig(**SIZES, **MORE, num_key_value_heads=2, logits_scaling=8.0),
    "scaled": CohereConfig(**SIZES, **MORE, num_key_value_heads=2, logit_scale=0.25),
    "tuples": FalconConfig(**SIZES, max_position_embeddings=512, bos_token_id=1, eos_token_id=2),
}


def built(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a model with random weights, large enough that its choices are clear."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(deepcopy(config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4 if "emb" in name or "wte" in name else 2)
    return model.requires_grad_(False)


@lru_cache
def base(name: str = "toy") -> TargetModel:
    """Return a target model: the built-in toy, or an architecture with random weights."""
    return TargetModel(load("toy").model if name == "toy" else built(ARCHITECTURES[name]))


@lru_cache
def toy_prompts(count: int = 24) -> tuple[tuple[int, ...], ...]:
    """Return beginnings of stories."""
    tokenizer = load("toy").tokenizer
    prompts = training_prompts("toystories", count)[0]
    return tuple(tuple(prompt_ids(prompt.text, tokenizer)) for prompt in prompts)


def drafter_of(target: TargetModel, seed: int = 0, scale: float = 0.0, **fields: object) -> Any:
    """Return an untrained drafter with its scales set. `scale` adds noise to every weight, so that
    no zero hides a mistake."""
    config = DrafterConfig.model_validate({"draft_vocabulary": 0, **fields})
    torch.manual_seed(seed)
    drafter = build_drafter(config, target, torch.arange(target.vocabulary))
    texts = [random_ids(target, min(64, target.context), seed=n) for n in range(6)]
    drafter.initialize(target, texts)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(scale * torch.randn_like(parameter) * (parameter.std() + 0.02))
    return drafter.eval()


def all_logits(drafter: Drafter, hidden: Tensor, embedded: Tensor) -> Tensor:
    """Return the logits [n, K, v] at every anchor of one sequence, given as [1, n, d]."""
    places = torch.arange(hidden.shape[1])
    return drafter.logits(drafter.anchor_slots(hidden, embedded, places * 0, places))


def random_ids(target: TargetModel, length: int, seed: int = 0) -> Tensor:
    """Return random token ids [length]."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(3, target.vocabulary, (length,), generator=random)


def mean_accepted(steps: Sequence[DecodeStep]) -> float:
    """Return the tokens committed per verification pass of an answer; 1 without a pass."""
    passes = [step for step in steps if step.path]
    return sum(len(step.tokens) for step in passes) / len(passes) if passes else 1.0
