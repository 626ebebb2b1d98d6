"""Is everything there that a run needs? One finding a line, with what to do about it."""

from jobs.cli.doctor import cluster, data, machine
from jobs.cli.doctor.check import HealthCheck
from jobs.cli.doctor.probe import probe

CHECKS = (
    machine.variables, data.data_folder, data.privacy, data.disk, machine.memory, machine.threads,
    machine.device, machine.native_decoder, machine.clock, machine.models, machine.cached_models,
    machine.texts, data.database_version, data.integrity, data.copies, data.orphans,
    cluster.artefact_store, cluster.engine, cluster.nodes, data.supervisor,
)  # fmt: skip


def examine(probes: bool = False) -> list[HealthCheck]:
    """Look at everything a run needs. Changes nothing but the kept result of the check of the
    database, and starts nothing. `probes`: start a job on the cluster, too."""
    return [check() for check in (*CHECKS, *[probe] * probes)]
