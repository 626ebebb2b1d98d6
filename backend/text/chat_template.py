"""Token ids of conversations and prompts. A chat template is a program of the model's author, so
that of a foreign model is rendered in a limited child process."""

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
    fork_base_process,
    tokenizer_error,
)
from backend.models.sources.trust import has_shipped_tokenizer
from backend.text.prompts import Prompt

_idle: list[LimitedChild] = []
os.register_at_fork(after_in_child=_idle.clear)


def render_chat(messages: Sequence[Mapping[str, str]], tokenizer: TextTokenizer) -> str:
    """Render a conversation as text that ends where the model's answer begins. Raises ModelError:
    the template fails or exceeds the limits."""
    if isinstance(tokenizer, ForeignTokenizer):
        return tokenizer.render(messages)
    turns = [dict(message) for message in messages]
    folder, child = str(tokenizer.name_or_path), None
    try:
        if has_shipped_tokenizer(folder):
            render = tokenizer.apply_chat_template
            return str(render(turns, tokenize=False, add_generation_prompt=True))
        template = tokenizer.get_chat_template()
        child = _idle.pop() if _idle else fork_base_process(WORK_BYTES)
        variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        call = f"{__name__}:render_template"
        return str(child.call(call, template, turns, variables, seconds=WORK_S))
    except Exception as error:  # a template can raise anything
        raise tokenizer_error(TEMPLATE, Path(folder).name or "the model", error) from error
    finally:
        if child and child.is_alive:
            _idle.append(child)


def render_template(
    template: str, messages: list[dict[str, str]], variables: dict[str, str]
) -> str:
    """Render a template. Called in the child."""
    render: Any = render_jinja_template  # its annotation is wrong
    texts, _ = render([messages], chat_template=template, add_generation_prompt=True, **variables)
    return str(texts[0])


def prompt_ids(prompt: str, tokenizer: TextTokenizer) -> list[int]:
    """Return the token ids of a prompt, rendered with the chat template if the tokenizer has one.
    Raises ModelError: the template cannot be used."""
    return chat_ids([{"role": "user", "content": prompt}], tokenizer)


def chat_ids(
    messages: Sequence[Mapping[str, str]], tokenizer: TextTokenizer, template: bool = True
) -> list[int]:
    """Return the token ids of a conversation, to which the model writes the next message.

    Args:
        messages: role and content of each.
        template: True to use the tokenizer's chat template, if it has one. Without a template, the
            contents are joined as paragraphs.

    Raises:
        ModelError: the template cannot be used.
    """
    if template and tokenizer.chat_template:
        text = render_chat(messages, tokenizer)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer("\n\n".join(message["content"] for message in messages)).input_ids)


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: TextTokenizer, max_tokens: int
) -> list[tuple[Prompt, list[int]]]:
    """Return prompts with their token ids, except empty prompts and those of more than
    `max_tokens`."""
    encoded = [(prompt, prompt_ids(prompt.text, tokenizer)) for prompt in prompts]
    return [(prompt, ids) for prompt, ids in encoded if 0 < len(ids) <= max_tokens]


def end_ids(tokenizer: TextTokenizer, config: Any = None) -> frozenset[int]:
    """Return the end-of-text tokens of the tokenizer and of a generation config."""
    configured = getattr(config, "eos_token_id", None)
    configured_ids = configured if isinstance(configured, list) else [configured]
    return frozenset(t for t in (tokenizer.eos_token_id, *configured_ids) if t is not None)
