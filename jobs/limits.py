"""Limits checked before a run is queued: context length, disk space, GPUs."""

import shutil
import subprocess
import sys
from functools import lru_cache

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.printable import readable_bytes
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


def require_device(device: str, gpus: int) -> None:
    """Raise `ConfigError` for a GPU that torch does not see."""
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= gpus:
        raise ConfigError(
            f"There is no device {device}.",
            f"torch sees {gpus} GPUs, numbered from 0.",
            f"Choose auto, cpu or a number below {gpus}." if gpus else "Choose auto or cpu.",
            "device",
        )


@lru_cache
def gpu_count() -> int:
    """Return the number of GPUs that torch sees. Runs in another process, because this one does not
    load torch. Takes seconds once, only if a config names a GPU."""
    code = "import torch; print(torch.cuda.device_count())"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    lines = process.stdout.split()
    return int(lines[-1]) if process.returncode == 0 and lines else 0
