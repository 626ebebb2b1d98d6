"""Rendering of chat templates, with limits: a template is a program of the model's author. Jinja's
sandbox keeps it from the machine, but not from failing, running for ever or filling the memory.
With it, prompts become token ids; `prompts` itself does not import transformers."""

import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil
from transformers import PreTrainedTokenizerBase

from backend.errors import ModelError
from backend.text.prompts import Prompt

RENDER_S = 2.0  # CPU seconds for one conversation; an ordinary template takes a millisecond
RENDER_BYTES = 2**30  # of memory besides what the process has


class _OutOfTimeError(BaseException):
    """Not an `Exception`: nothing on the way out may take it for a failed lookup."""


def render_chat(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """A conversation as text that ends where the model's answer begins. Main thread only. Raises
    ModelError: the template fails, or exceeds the limits."""
    try:
        with _limited_time(RENDER_S), _limited_memory(RENDER_BYTES):
            turns = [dict(message) for message in messages]
            render = tokenizer.apply_chat_template
            return str(render(turns, tokenize=False, add_generation_prompt=True))
    except _OutOfTimeError as error:
        raise _unusable(f"Rendering one prompt takes more than {RENDER_S:g} s.") from error
    except MemoryError as error:
        raise _unusable(
            f"Rendering one prompt takes more than {RENDER_BYTES >> 30} GiB."
        ) from error
    except Exception as error:  # a template can raise anything
        raise _unusable(f"{str(error) or type(error).__name__}."[:300]) from error


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds` of the process's CPU time: on a busy machine a template is
    not slower than on an idle one."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _limited_memory(most: int) -> Iterator[None]:
    """Let allocations fail that would take `most` more bytes than the process has, where the
    platform tells how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = getattr(psutil.Process().memory_info(), "data", None)
    if held is None or (soft != resource.RLIM_INFINITY and soft < held + most):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (held + most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _unusable(why: str) -> ModelError:
    return ModelError(
        "The chat template of the model cannot be used.",
        why,
        "Correct or remove it in chat_template.jinja or tokenizer_config.json of the model.",
        "model",
    )


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
    return list(tokenizer("\n\n".join(each["content"] for each in messages)).input_ids)


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
