"""Checks of what several machines share: the cluster that runs start on, and the artefact store."""

from importlib import import_module
from uuid import uuid4

from backend.queue.artifacts.store import store
from backend.queue.engines.choose import CLUSTERS, engine_of
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from jobs.cli.doctor.check import HealthCheck, check
from jobs.cli.doctor.node import versions
from jobs.cli.doctor.probe import PROBE

LATEST = 50  # runs looked at


def engine() -> HealthCheck:
    """Whether the cluster answers, and how many runs it has room for."""
    here = settings()
    if here.engine not in CLUSTERS:
        return HealthCheck("engine", True, "runs start on this machine")
    try:
        text = import_module(CLUSTERS[here.engine]).described(here)
    except OSError as error:
        fix = (
            "Start it, or correct SLIMSCOPE_ENGINE, SLIMSCOPE_RAY_ADDRESS and SLIMSCOPE_RAY_TOKEN."
        )
        return HealthCheck("engine", False, str(error), fix)
    places = engine_of(here).room().places
    fix = "Start its machines, or lower SLIMSCOPE_THREADS and SLIMSCOPE_JOB_GPUS."
    return check("engine", places > 0, f"{text}; room for {places} at the same time", fix)


def nodes() -> HealthCheck:
    """Whether the machines that ran something lately have the versions of this one."""
    here = versions()
    ran = (job.environment for job in queries.jobs([State.SUCCEEDED])[:LATEST] if job.id > 0)
    found = {str(env["host"]): env["versions"] for env in reversed([*ran]) if "versions" in env}
    other = {
        f"{host} has {name} {there.get(name)}, this machine {has}"
        for host, there in found.items()
        for name, has in here.items()
        if there.get(name) != has
    }
    same = ", ".join(found) or "none yet"
    text = "; ".join(sorted(other)) or f"machines that ran something lately: {same}"
    return check("versions", not other, text, "Install the same versions on every machine.")


def artefact_store() -> HealthCheck:
    """Whether the store takes a file, and gives it back."""
    try:
        kept = store()
        if kept is None:
            return HealthCheck("artefact store", True, f"the folder {settings().artifacts}")
        key, content = PROBE.format(uuid4().hex), uuid4().bytes
        kept.write(key, content)
        same = kept.read(key) == content
        kept.remove(key)
    except Exception as error:  # each file system has errors of its own
        return HealthCheck("artefact store", False, str(error), "Correct SLIMSCOPE_ARTIFACTS.")
    text = f"{settings().artifact_store} takes files"
    return check("artefact store", same, text, "It does not give back what it was given.")
