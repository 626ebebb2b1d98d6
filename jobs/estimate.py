"""What a run will cost: its requirements checked against this machine, and a duration learned from
finished runs."""

from backend.models import memory
from jobs.fields.processes import ProcessesConfig
from jobs.kind import Estimate, JobConfig, Kind
from jobs.limits import gpu_count, require_device, require_disk
from jobs.runtime.duration import estimate_seconds


def estimate(kind: Kind, config: JobConfig) -> Estimate:
    """Check a config and estimate its run.

    Raises:
        SlimscopeError: the run cannot work, or needs more memory or disk than there is.
    """
    if config.device.startswith("cuda"):
        require_device(config.device, gpu_count())
    needs = kind.requirements(config)
    memory.check_memory(needs.memory, memory.memory_available(), needs.title)
    if needs.disk:
        require_disk(needs.disk)
    flops = sum(needs.flops.values())
    processes = config.processes if isinstance(config, ProcessesConfig) else 1
    seconds, basis = estimate_seconds(
        kind.name, needs.model, flops, needs.timed_seconds, config.device, processes
    )
    needed = sum(needs.memory.values())
    return Estimate(**vars(needs), seconds=seconds, bytes=needed, basis=basis)
