"""Limits a run is checked against before it is queued: context length and disk."""

from __future__ import annotations

import shutil

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.memory import readable
from backend.settings import settings
from jobs.kind import DiskSpace


def require_context(
    tokens: int, facts: ModelFacts, what: str, field: str, *, prompt: bool = False
) -> None:
    """Refuse sequences longer than the model's context.

    Args:
        what: the sequences, as in "Responses".
        prompt: whether a prompt comes before them, so that a token at least has to be left.

    Raises:
        ConfigError: for `field`.
    """
    if tokens + prompt > facts.context:
        with_prompt = ", including the prompt" if prompt else ""
        raise ConfigError(
            f"{what} of {tokens} tokens do not fit.",
            f"The context of {facts.title} is {facts.context} tokens{with_prompt}.",
            "Choose fewer tokens.",
            field,
        )


def require_disk(space: DiskSpace) -> None:
    """Refuse a run that the disk has no room for.

    Raises:
        ConfigError: names both numbers, and what makes it smaller.
    """
    root = settings().root
    free = shutil.disk_usage(root if root.exists() else ".").free
    if space.bytes > free:
        raise ConfigError(
            "The run does not fit on the disk.",
            f"{space.contents} take about {readable(space.bytes)}; {readable(free)} are free.",
            space.do,
            space.field,
        )
