"""Conversations and prompts as token ids. A chat template is a program of the model's author: that
of a foreign model is rendered in a limited child."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from backend.limited import LimitedChild
from backend.models.foreign_tokenizer import (
    TEMPLATE,
    WORK_BYTES,
    WORK_S,
    ForeignTokenizer,
    TextTokenizer,
    forked_base,
    unusable,
)
from backend.models.sources.trust import has_shipped_tokenizer
from backend.text.prompts import Prompt

_idle: list[LimitedChild] = []
os.register_at_fork(after_in_child=_idle.clear)


def render_chat(messages: Sequence[Mapping[str, str]], tokenizer: TextTokenizer) -> str:
    """A conversation as text that ends where the model's answer begins. Raises ModelError: the
    template fails, or exceeds the limits."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.render(messages)
    turns = [dict(message) for message in messages]
    folder, child = str(tokenizer.name_or_path), None
    try:
        if has_shipped_tokenizer(folder):
            render = tokenizer.apply_chat_template
            return str(render(turns, tokenize=False, add_generation_prompt=True))
        template = tokenizer.get_chat_template()
        child = _idle.pop() if _idle else forked_base(WORK_BYTES)
        variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        call = f"{__name__}:rendered"
        return str(child.call(call, template, turns, variables, seconds=WORK_S))
    except Exception as error:  # a template can raise anything
        raise unusable(TEMPLATE, Path(folder).name or "the model", error) from error
    finally:
        if child and child.is_alive:
            _idle.append(child)


def rendered(template: str, messages: list[dict[str, str]], variables: dict[str, str]) -> str:
    """A rendered template; called in the child."""
    render: Any = render_jinja_template  # annotated wrongly
    texts, _ = render([messages], chat_template=template, add_generation_prompt=True, **variables)
    return str(texts[0])


def prompt_ids(prompt: str, tokenizer: TextTokenizer) -> list[int]:
    """Token ids of a prompt, rendered with the chat template if the tokenizer has one. Raises
    ModelError: the template cannot be used."""
    return chat_ids([{"role": "user", "content": prompt}], tokenizer)


def chat_ids(
    messages: Sequence[Mapping[str, str]], tokenizer: TextTokenizer, template: bool = True
) -> list[int]:
    """Token ids of a conversation that the model is to go on with. Without a template its messages
    are one text, each in a paragraph of its own. `messages`: role and content.
    `template`: whether to use the tokenizer's chat template, if it has one. Raises ModelError: the
    template cannot be used."""
    if template and tokenizer.chat_template:
        text = render_chat(messages, tokenizer)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer("\n\n".join(each["content"] for each in messages)).input_ids)


def readable_ids(
    prompts: Sequence[Prompt], tokenizer: TextTokenizer, most: int
) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids, without empty ones and those above `most` tokens."""
    encoded = [(prompt, prompt_ids(prompt.text, tokenizer)) for prompt in prompts]
    return [(prompt, ids) for prompt, ids in encoded if 0 < len(ids) <= most]


def end_ids(tokenizer: TextTokenizer, config: Any = None) -> frozenset[int]:
    """End-of-text tokens of the tokenizer and of a generation config."""
    configured = getattr(config, "eos_token_id", None)
    configured_ids = configured if isinstance(configured, list) else [configured]
    return frozenset(t for t in (tokenizer.eos_token_id, *configured_ids) if t is not None)
