"""Checks of the cluster and the artifact store.

The probe is a test job that reports its host. It checks that machines of the cluster start jobs,
have the same package versions as this machine, and reach the same artifact store.
"""

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
PROBE_TIMEOUT_S, POLL_S = 120.0, 0.5
FILE_DELAY_S = 15.0  # maximum delay until the file of a finished job is visible here
INSTALL_ADVICE = (
    "Install Slimscope on every machine, and set SLIMSCOPE_PYTHON to the Python that contains it."
)
STORE_ADVICE = "Set SLIMSCOPE_ARTIFACTS to the same folder or store on all machines."
RECENT_RUNS = 50  # runs whose package versions are compared


def probe() -> HealthCheck:
    """Start a test job on the cluster and wait for its record. Passes if runs start on this
    machine."""
    active_settings = settings()
    if active_settings.engine not in CLUSTERS:
        return HealthCheck("probe", True, "runs start on this machine")
    return send(engine_of(active_settings))


def send(engine: Engine) -> HealthCheck:
    """Start the test job with an engine, and remove all its traces afterward."""
    key, start_s = PROBE.format(secrets.token_hex(8)), time.monotonic()
    request = _request(key)
    try:
        ref = engine.launch(request)
    except OSError as error:
        return HealthCheck("probe", False, f"not started: {error}", INSTALL_ADVICE)
    try:
        record, poll_result = _wait_for_record(engine, ref, key)
        if record is not None:
            return _result_of(record, time.monotonic() - start_s)
        return _result_without_record(poll_result)
    finally:
        with suppress(OSError):
            if engine.poll([ref])[0].state != "exited":
                engine.kill(ref)
            engine.forget(ref)
            store_or_folder().remove(key)


def _request(key: str) -> LaunchRequest:
    return LaunchRequest(
        attempt_id=0,  # not a run: attempts have ids from 1
        argv=(sys.executable, "-m", "jobs.cli.doctor.node", key),
        environment=node_environment(settings().for_jobs(), {}),
        log="",
        folder=str(CODE),
        token=secrets.token_hex(16),
    )


def _wait_for_record(
    engine: Engine, ref: Ref, key: str
) -> tuple[dict[str, object] | None, PollResult]:
    """Return the record of the machine (None after a timeout), and the state of the job."""
    deadline_s, has_ended = time.monotonic() + PROBE_TIMEOUT_S, False
    while True:
        (poll_result,) = engine.poll([ref])
        if (record := node.read(key)) is not None or time.monotonic() > deadline_s:
            return record, poll_result
        if poll_result.state == "exited" and not has_ended:  # its file may appear with a delay
            has_ended, deadline_s = True, min(deadline_s, time.monotonic() + FILE_DELAY_S)
        time.sleep(POLL_S)


def _result_of(record: dict[str, object], seconds: float) -> HealthCheck:
    """Return the result for a machine that has answered."""
    remote, local = dict(record["versions"]), node.versions()  # type: ignore[call-overload]
    versions = ", ".join(f"{name} {remote.get(name)}" for name in local)
    text = f"{record['host']} has {versions}; its file arrived after {seconds:.0f} s"
    differences = [
        f"{name} {version}" for name, version in local.items() if remote.get(name) != version
    ]
    text += f"; this machine has {', '.join(differences)}" if differences else ""
    return check("probe", not differences, text, "Install the same versions on every machine.")


def _result_without_record(poll_result: PollResult) -> HealthCheck:
    """Return the result for a job that left no file."""
    if poll_result.state != "exited":
        text = f"the cluster did not finish a job of one second within {PROBE_TIMEOUT_S:.0f} s"
        fix = "Check the cluster's queue: it may be full, or no machine has the required resources."
        return HealthCheck("probe", False, text, fix)
    if poll_result.code:
        text = f"the job failed (exit code {poll_result.code}) {poll_result.why}".strip()
        return HealthCheck("probe", False, text, INSTALL_ADVICE)
    text = "the job has ended, but its file is not visible here"
    return HealthCheck("probe", False, text, STORE_ADVICE)


def engine() -> HealthCheck:
    """Check that the cluster responds and has room for runs."""
    active_settings = settings()
    if active_settings.engine not in CLUSTERS:
        return HealthCheck("engine", True, "runs start on this machine")
    try:
        text = import_module(CLUSTERS[active_settings.engine]).described(active_settings)
    except OSError as error:
        fix = (
            "Start it, or correct SLIMSCOPE_ENGINE, SLIMSCOPE_RAY_ADDRESS and SLIMSCOPE_RAY_TOKEN."
        )
        return HealthCheck("engine", False, str(error), fix)
    places = engine_of(active_settings).room().places
    fix = "Start machines, or lower SLIMSCOPE_THREADS and SLIMSCOPE_JOB_GPUS."
    return check("engine", places > 0, f"{text}; room for {places} runs at the same time", fix)


def nodes() -> HealthCheck:
    """Check that machines of recent runs have the package versions of this machine."""
    local = versions()
    environments = (
        job.environment for job in queries.jobs([State.SUCCEEDED])[:RECENT_RUNS] if job.id > 0
    )
    versions_of_host = {  # missing in imported and restored runs
        str(environment["host"]): environment["versions"]
        for environment in reversed([*environments])
        if {"host", "versions"} <= {*environment}
    }
    differences = {
        f"{host} has {name} {remote.get(name)}, this machine {version}"
        for host, remote in versions_of_host.items()
        for name, version in local.items()
        if remote.get(name) != version
    }
    hosts = ", ".join(versions_of_host) or "none yet"
    text = "; ".join(sorted(differences)) or f"machines of recent runs: {hosts}"
    return check("versions", not differences, text, "Install the same versions on every machine.")


def artifact_store() -> HealthCheck:
    """Check that the artifact store returns a file that was written."""
    try:
        artifacts = store()
        if artifacts is None:
            return HealthCheck("artifact store", True, f"the folder {settings().artifacts}")
        key, content = PROBE.format(uuid4().hex), uuid4().bytes
        artifacts.write(key, content)
        is_intact = artifacts.read(key) == content
        artifacts.remove(key)
    except Exception as error:  # exceptions depend on the file system
        return HealthCheck("artifact store", False, str(error), "Correct SLIMSCOPE_ARTIFACTS.")
    text = f"{settings().artifact_store} accepts files"
    return check("artifact store", is_intact, text, "Repair it: files read back are different.")
