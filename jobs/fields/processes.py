"""How many processes train together: a field shared by the kinds that can."""

from collections.abc import Mapping

from backend.errors import ConfigError
from backend.options import Options, option
from backend.queue.engines import CLUSTERS
from backend.queue.engines.local import installed_gpus
from backend.settings import available_threads, settings
from jobs.limits import gpu_count


class ProcessesConfig(Options):
    """How many processes of one machine a run trains on."""

    processes: int = option(1, "Processes", ge=1, le=64, advanced=True)
    """Data-parallel training: every process takes its share of the batch, and its share of the CPU
    threads or a GPU of its own. The loss is that of one process."""


def require_processes(count: int, device: str, sequences: int) -> None:
    """Raise `ConfigError` for more processes than cores or GPUs, and for a batch they cannot
    share."""
    if count == 1:
        return
    if ":" in device:
        raise ConfigError(
            f"{count} processes do not fit on {device}.",
            "Each takes a GPU of its own.",
            "Choose auto, cuda or cpu.",
            "device",
        )
    most, of_what = places(device)
    if count > most:
        raise ConfigError(
            f"There is no room for {count} processes.",
            f"A run has {most} {of_what}, and each process takes one.",
            f"Choose {most} or fewer." if most > 1 else "Choose 1.",
            "processes",
        )
    if sequences % count:
        raise ConfigError(
            f"{count} processes cannot share a batch equally.",
            f"A step has {sequences} sequences.",
            f"Choose a batch size that is a multiple of {count}, or fewer processes.",
            "processes",
        )


def places(device: str) -> tuple[int, str]:
    """Room for processes on a run's machine (on a cluster by the settings): number, of what."""
    here = settings()
    if here.engine in CLUSTERS:
        if here.job_gpus and device != "cpu":
            return int(here.job_gpus), "GPUs on the cluster (SLIMSCOPE_JOB_GPUS)"
        return here.threads or 1, "cores on the cluster (SLIMSCOPE_THREADS)"
    asks = device == "cuda" or (device == "auto" and bool(installed_gpus()))
    if asks and (gpus := gpu_count()):
        return gpus // min(here.slots, gpus), "GPUs"
    return max(1, available_threads() // here.slots), "cores"


def memory_of_others(count: int, needed: Mapping[str, int], *shared: str) -> dict[str, int]:
    """Purpose -> bytes that `count` - 1 processes take at their peak: of those `needed` by the
    first, the purposes they all have (`shared`)."""
    each = sum(needed.get(purpose, 0) for purpose in shared)
    return {"other processes": (count - 1) * each} if count > 1 else {}
