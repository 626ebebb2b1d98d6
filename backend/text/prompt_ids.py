"""Prompts as token ids. Separate from `prompts`, which does not import transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from backend.text.chat_template import render_chat
from backend.text.prompts import Prompt

PARAGRAPH = "\n\n"


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, rendered with the chat template if the tokenizer has one. Main thread
    only. Raises ModelError: the template cannot be used."""
    return chat_ids([{"role": "user", "content": prompt}], tokenizer)


def chat_ids(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, template: bool = True
) -> list[int]:
    """Token ids of a conversation that the model is to go on with. Without a template its messages
    are one text, each in a paragraph of its own. Main thread only. `messages`: role and content.
    `template`: whether to use the tokenizer's chat template, if it has one. Raises ModelError: the
    template cannot be used."""
    if template and tokenizer.chat_template:
        text = render_chat(messages, tokenizer)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer(PARAGRAPH.join(each["content"] for each in messages)).input_ids)


def readable_ids(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, most: int
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids, without empty ones and those above `most` tokens."""
    encoded = [(prompt, prompt_ids(prompt.text, tokenizer)) for prompt in prompts]
    return [(prompt, ids) for prompt, ids in encoded if 0 < len(ids) <= most]


def end_ids(tokenizer: PreTrainedTokenizerBase, config: Any = None) -> frozenset[int]:
    """End-of-text tokens of the tokenizer and of a generation config."""
    configured = getattr(config, "eos_token_id", None)
    configured_ids = configured if isinstance(configured, list) else [configured]
    return frozenset(t for t in (tokenizer.eos_token_id, *configured_ids) if t is not None)
