"""Checks of what several machines share: the cluster that runs start on, and the artifact store.
The probe is a job that does nothing but say where it is: whether machines of a cluster start what
they are given, have the versions of this one, and reach the same artifacts."""

import secrets
import sys
import time
from contextlib import suppress
from importlib import import_module
from uuid import uuid4

from backend.queue.artifacts import store, store_or_folder
from backend.queue.engines import CLUSTERS, engine_of
from backend.queue.engines.base import Engine, LaunchRequest, PollResult, Ref
from backend.queue.launcher import CODE, node_environment
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from jobs.cli.doctor import node
from jobs.cli.doctor.machine import HealthCheck, check
from jobs.cli.doctor.node import versions

PROBE = "of-the-doctor-{}"
WAIT_S, LOOK_S = 120.0, 0.5  # for a machine to answer; between two looks
SEEN_S = 15.0  # from the end of the job until its file has to be seen here
INSTALL = (
    "Install Slimscope on every machine, and set SLIMSCOPE_PYTHON there to the Python that has it."
)
SHARE = "Set SLIMSCOPE_ARTIFACTS to the same folder or store here and on every machine."
LATEST = 50  # runs looked at


def probe() -> HealthCheck:
    """Send a job to the cluster, and wait for what it says. Where runs start on this machine there
    is nothing to send it to."""
    here = settings()
    if here.engine not in CLUSTERS:
        return HealthCheck("probe", True, "runs start on this machine")
    return send(engine_of(here))


def send(engine: Engine) -> HealthCheck:
    """Send the job by an engine; nothing of it is left afterward."""
    launch, began = _request(key := PROBE.format(secrets.token_hex(8))), time.monotonic()
    try:
        ref = engine.launch(launch)
    except OSError as error:
        return HealthCheck("probe", False, f"not started: {error}", INSTALL)
    try:
        told, last = _answer(engine, ref, key)
        if told is not None:
            return _judged(told, time.monotonic() - began)
        return _silent(last)
    finally:
        with suppress(OSError):
            if engine.poll([ref])[0].state != "exited":
                engine.kill(ref)
            engine.forget(ref)
            store_or_folder().remove(key)


def _request(key: str) -> LaunchRequest:
    return LaunchRequest(
        attempt_id=0,  # no run: their numbers begin at 1
        argv=(sys.executable, "-m", "jobs.cli.doctor.node", key),
        environment=node_environment(settings().for_jobs(), {}),
        log="",
        folder=str(CODE),
        token=secrets.token_hex(16),
    )


def _answer(engine: Engine, ref: Ref, key: str) -> tuple[dict[str, object] | None, PollResult]:
    """What the machine says, if it does in time; and what the engine says of the job."""
    deadline, ended = time.monotonic() + WAIT_S, False
    while True:
        (last,) = engine.poll([ref])
        if (told := node.read(key)) is not None or time.monotonic() > deadline:
            return told, last
        if last.state == "exited" and not ended:  # its file may need a moment to be seen
            ended, deadline = True, min(deadline, time.monotonic() + SEEN_S)
        time.sleep(LOOK_S)


def _judged(told: dict[str, object], seconds: float) -> HealthCheck:
    """A finding on a machine that has answered."""
    there, here = dict(told["versions"]), node.versions()  # type: ignore[call-overload]
    words = ", ".join(f"{name} {there.get(name)}" for name in here)
    text = f"{told['host']} has {words}; its file is seen here, after {seconds:.0f} s"
    other = [f"{name} {has}" for name, has in here.items() if there.get(name) != has]
    text += f"; this machine has {', '.join(other)}" if other else ""
    return check("probe", not other, text, "Install the same versions on every machine.")


def _silent(last: PollResult) -> HealthCheck:
    """A finding on a job that has left no file."""
    if last.state != "exited":
        text = f"the cluster has not carried out a job of one second within {WAIT_S:.0f} s"
        fix = "See the queue of the cluster: it may be full, or ask for what no machine has."
        return HealthCheck("probe", False, text, fix)
    if last.code:
        text = f"the job failed (exit code {last.code}) {last.why}".strip()
        return HealthCheck("probe", False, text, INSTALL)
    return HealthCheck("probe", False, "the job has ended, but its file is not seen here", SHARE)


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
    found = {  # imported and restored runs do not say where they ran
        str(env["host"]): env["versions"]
        for env in reversed([*ran])
        if {"host", "versions"} <= {*env}
    }
    other = {
        f"{host} has {name} {there.get(name)}, this machine {has}"
        for host, there in found.items()
        for name, has in here.items()
        if there.get(name) != has
    }
    same = ", ".join(found) or "none yet"
    text = "; ".join(sorted(other)) or f"machines that ran something lately: {same}"
    return check("versions", not other, text, "Install the same versions on every machine.")


def artifact_store() -> HealthCheck:
    """Whether the store takes a file, and gives it back."""
    try:
        kept = store()
        if kept is None:
            return HealthCheck("artifact store", True, f"the folder {settings().artifacts}")
        key, content = PROBE.format(uuid4().hex), uuid4().bytes
        kept.write(key, content)
        same = kept.read(key) == content
        kept.remove(key)
    except Exception as error:  # each file system has errors of its own
        return HealthCheck("artifact store", False, str(error), "Correct SLIMSCOPE_ARTIFACTS.")
    text = f"{settings().artifact_store} takes files"
    return check("artifact store", same, text, "It does not give back what it was given.")
