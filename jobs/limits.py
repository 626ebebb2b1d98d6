"""Limits a run is checked against before it is queued: context length, disk, GPUs."""

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
    tokens: int, facts: ModelFacts, what: str, field: str, *, prompt: bool = False
) -> None:
    """Raise `ConfigError` for `field` if sequences, such as "Responses", are longer than the
    model's context; with a `prompt` before them, a token at least has to be left for it."""
    if tokens + prompt > facts.context:
        with_prompt = ", including the prompt" if prompt else ""
        raise ConfigError(
            f"{what} of {tokens} tokens do not fit.",
            f"The context of {facts.title} is {facts.context} tokens{with_prompt}.",
            "Choose fewer tokens.",
            field,
        )


def require_disk(space: DiskSpace) -> None:
    """Raise `ConfigError` for a run that the disk has no room for."""
    root = settings().root
    free = shutil.disk_usage(root if root.exists() else ".").free
    if space.bytes > free:
        needed, there = readable_bytes(space.bytes), readable_bytes(free)
        raise ConfigError(
            "The run does not fit on the disk.",
            f"{space.contents} take about {needed}; {there} are free.",
            space.do,
            space.field,
        )


def require_device(device: str, gpus: int) -> None:
    """Raise `ConfigError` for a GPU beyond the number that torch sees."""
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= gpus:
        raise ConfigError(
            f"There is no device {device}.",
            f"torch sees {gpus} GPUs, counted from 0.",
            f"Choose auto, cpu or a number below {gpus}." if gpus else "Choose auto or cpu.",
            "device",
        )


@lru_cache
def gpu_count() -> int:
    """Number of GPUs torch sees. Asked in another process, since this one does not load torch: that
    takes seconds, once, and only where somebody asks for a GPU."""
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else 0
