"""Environment of a run: device, threads, and the versions needed to reproduce it."""

import os
import platform
from importlib.metadata import version

import torch

from backend.models.devices import accelerators, device_name, unusable_reason, use_device
from backend.settings import available_threads
from jobs.estimates import processor
from jobs.kind import JobConfig
from jobs.limits import require_device
from jobs.runtime.context import JobContext

PACKAGES = ("slimscope", "torch", "transformers", "datasets", "numpy")


def prepare(config: JobConfig, context: JobContext) -> str:
    """Set seed, threads and precision, record the environment, and return the torch device. Raises
    ConfigError if the requested device does not exist."""
    torch.manual_seed(config.seed)
    threads = config.used_threads
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False  # Gram matrices and solvers need full float32
    if (device := config.device) == "auto":
        device = next(iter(accelerators()), "cpu")
    elif device != "cpu":  # a run on the CPU starts no GPU
        count = len(accelerators())
        require_device(device, count, "" if count else unusable_reason())
    use_device(device)  # synchronization calls then wait for this device
    context.record_environment(
        host=platform.node(),
        cpu=f"{processor()}, {available_threads()} of {os.cpu_count()} cores",
        device=device_name(device),
        threads=threads,
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
    )
    return device
