"""Prompts as token ids. Apart from `prompts`, so that configs and forms import no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from backend.text.prompts import Prompt


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, inside the chat template where the tokenizer has one."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer(prompt).input_ids)


def readable_ids(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, most: int
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids, without those of more than `most` tokens or of none."""
    found = [(prompt, prompt_ids(prompt.text, tokenizer)) for prompt in prompts]
    return [(prompt, ids) for prompt, ids in found if 0 < len(ids) <= most]


def end_ids(tokenizer: PreTrainedTokenizerBase, config: Any = None) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those of a generation config."""
    configured = getattr(config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(t for t in (tokenizer.eos_token_id, *several) if t is not None)
