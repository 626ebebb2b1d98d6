"""Limits checked before a run is queued: context length, disk space, GPUs."""

import shutil

from backend.errors import ConfigError
from backend.models import cards
from backend.models.facts import ModelFacts
from backend.models.memory import DeviceMemory, host_memory
from backend.printable import readable_bytes
from backend.queue.engines import CLUSTERS
from backend.queue.engines.local import installed_gpus
from backend.settings import settings
from jobs.kind import DiskSpace


def require_context(
    tokens: int, facts: ModelFacts, sequences: str, field: str, *, prompt: bool = False
) -> None:
    """Raise `ConfigError` for `field` if sequences (such as "Responses") exceed the context of the
    model. With `prompt`, at least one token must be left for a prompt."""
    if tokens + prompt > facts.context:
        with_prompt = ", including the prompt" if prompt else ""
        raise ConfigError(
            f"{sequences} of {tokens} tokens do not fit.",
            f"The context of {facts.title} is {facts.context} tokens{with_prompt}.",
            "Choose fewer tokens.",
            field,
        )


def require_disk(space: DiskSpace) -> None:
    """Raise `ConfigError` if the run does not fit on the disk."""
    root = settings().root
    free = shutil.disk_usage(root if root.exists() else ".").free
    if space.bytes > free:
        needed, available = readable_bytes(space.bytes), readable_bytes(free)
        raise ConfigError(
            "The run does not fit on the disk.",
            f"{space.contents} need about {needed}; {available} are free.",
            space.do,
            space.field,
        )


def require_device(device: str, count: int, reason: str = "") -> None:
    """Raise `ConfigError` for a GPU that torch cannot use.

    Args:
        device: requested device, such as "cuda:1".
        count: number of GPUs that torch sees.
        reason: reason of torch for seeing none.
    """
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= count:
        do = "Choose auto or cpu, or correct the installation: slimscope doctor."
        numbers = f": {reason}" if reason else ", numbered from 0"
        raise ConfigError(
            f"There is no device {device}.",
            f"torch sees {count} GPU{'s' * (count != 1)}{numbers}.",
            f"Choose auto, cpu or a number below {count}." if count else do,
            "device",
        )


def run_memory(device: str) -> DeviceMemory:
    """Return the memory that a run with this device in its config computes in.

    Of several GPUs whose runs are distributed by slot, the smallest counts. The machines of a
    cluster are unknown, so the memory of this host counts. Raises `ConfigError` for a GPU that
    torch cannot use.
    """
    is_here = settings().engine not in CLUSTERS and (device != "auto" or installed_gpus())
    if device == "cpu" or not is_here:
        return host_memory()
    found = cards.report()
    require_device(device, len(found.cards), found.reason)
    if not found.cards:
        return host_memory()
    number = device.partition(":")[2]
    if number or settings().slots == 1:
        return cards.card_memory(found.cards[int(number or 0)])
    return cards.card_memory(min(found.cards, key=lambda card: card.total_bytes))
