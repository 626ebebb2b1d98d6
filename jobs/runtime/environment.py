"""Where a run takes place: device, threads, and the versions needed to repeat it."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

from backend.settings import available_threads, settings
from backend.training import distributed
from jobs.estimates import processor
from jobs.kind import JobConfig
from jobs.limits import require_device
from jobs.runtime.rank import RunContext

PACKAGES = ("slimscope", "torch", "transformers", "datasets", "numpy")


def prepare(config: JobConfig, context: RunContext) -> str:
    """Seeds, sets threads and precision, records where the run takes place, and meets the other
    processes, if it has several; returns the torch device. Raises ConfigError: the device asked for
    is not there."""
    torch.manual_seed(config.seed)
    rank, threads = context.rank, config.threads or settings().threads or available_threads()
    if rank:
        threads = max(1, threads // rank.world)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False  # Grams and solvers need full float32
    if (device := config.device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        require_device(device, torch.cuda.device_count())
    if rank and device == "cuda":
        require_device(f"cuda:{rank.world - 1}", torch.cuda.device_count())
        device = f"cuda:{rank.number}"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # what waits for "the GPU" waits for this one
    if rank:
        distributed.join(rank.number, rank.world, rank.rendezvous)
    context.environment(**place(device, threads))
    return device


def place(device: str, threads: int) -> dict[str, Any]:
    """Where a run takes place, and the versions needed to repeat it."""
    return {
        "host": platform.node(),
        "cpu": f"{processor()}, {available_threads()} of {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
