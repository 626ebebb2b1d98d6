"""Rendering of chat templates.

A template is a program of the model's author. Jinja's sandbox keeps it from the machine, but not
from failing or from running for ever: rendering has a limit on CPU time.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from transformers import PreTrainedTokenizerBase

from backend.errors import ModelError

RENDER_S = 2.0  # CPU seconds for one conversation; an ordinary template takes a millisecond


class _OutOfTimeError(BaseException):
    """Not an `Exception`: nothing on the way out may take it for a failed lookup."""


def render_chat(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """A conversation as text that ends where the model's answer begins. Main thread only.

    Raises:
        ModelError: the template fails, or takes more than `RENDER_S`.
    """
    try:
        with _limited_to(RENDER_S):
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
    except _OutOfTimeError as error:
        raise _unusable(f"Rendering one prompt takes more than {RENDER_S:g} s.") from error
    except Exception as error:  # a template can raise anything
        raise _unusable(f"{str(error) or type(error).__name__}."[:300]) from error


@contextmanager
def _limited_to(seconds: float) -> Iterator[None]:
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


def _unusable(why: str) -> ModelError:
    return ModelError(
        "The chat template of the model cannot be used.",
        why,
        "Correct or remove it in chat_template.jinja or tokenizer_config.json of the model.",
        "model",
    )
