"""Jobs on a Slurm cluster, through the commands of a login node: sbatch, squeue, scancel.

As many runs are submitted as there are slots; Slurm orders them by the rules of the site. A job is
identified by its name, which is derived from the attempt."""

import json
import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backend.queue.engines.base import LaunchRequest, PollResult, Ref, Room
from backend.settings import Settings

COMMAND_TIMEOUT_S = 10.0
JOBS_CACHE_S = 5.0  # lifetime of the list of jobs, and pause before a stop is repeated
ENDED_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
SCRIPT = "#!/bin/sh -l\n{variables}\nexec ${{SLIMSCOPE_PYTHON:-python}} {arguments}\n"


class SlurmError(OSError):
    """A failed command of Slurm."""


def run_command(line: Sequence[str], stdin: str = "") -> str:
    """The output of a command.

    Raises:
        SlurmError: the command failed, was too slow, or is not installed.
    """
    try:
        process = subprocess.run(
            line, input=stdin, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{line[0]} does not answer: {error}") from error
    if process.returncode:
        raise SlurmError(f"{line[0]} failed: {process.stderr.strip()}")
    return process.stdout


class SlurmEngine:
    """Submits each attempt as a batch job on one machine.

    Args:
        jobs: number of concurrent jobs.
        cpus, gpus: cores and GPUs per job.
        arguments: further arguments of sbatch, for partition, account or time limit.
        clock: monotonic clock, in seconds.
    """

    name = "slurm"
    host = "the Slurm cluster"
    remote = True

    def __init__(
        self,
        jobs: int,
        cpus: float,
        gpus: float,
        arguments: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places, self._cpus, self._gpus = jobs, math.ceil(cpus), math.ceil(gpus)
        self._arguments, self._clock = arguments, clock
        self._jobs: dict[str, dict[str, Any]] | None = None  # by name; None without an answer
        self._jobs_at = -math.inf
        self._stopped_at: dict[str, float] = {}  # time of the last stop request by job and signal

    def room(self) -> Room:
        """One place per slot, while Slurm answers."""
        return Room(self._places, is_reachable=self._list_jobs() is not None)

    def _list_jobs(self) -> dict[str, dict[str, Any]] | None:
        """Our active and recently ended jobs by name; None while Slurm does not answer."""
        if self._clock() - self._jobs_at >= JOBS_CACHE_S:
            try:
                listed = json.loads(run_command(["squeue", "--json", "--me", "--states=all"]))
                self._jobs = {job["name"]: job for job in listed["jobs"]}
            except (SlurmError, ValueError, KeyError, TypeError):
                self._jobs = None
            self._jobs_at = self._clock()  # read again, as a command may have hung for long
        return self._jobs

    def reference(self, launch: LaunchRequest) -> Ref:
        """The name of the Slurm job of an attempt."""
        return {"job": f"slimscope-{launch.attempt_id}-{launch.token[:8]}"}

    def launch(self, launch: LaunchRequest) -> Ref:
        """Submit the batch job of an attempt."""
        ref = self.reference(launch)
        line = [
            "sbatch",
            "--parsable",
            f"--job-name={ref['job']}",
            "--no-requeue",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={self._cpus}",
            "--signal=B:USR1@120",  # seconds before its time limit or its preemption
            "--export=NONE",
            "--output=/dev/null",
            *self._arguments,
        ]
        if self._gpus:
            line.append(f"--gres=gpu:{self._gpus}")
        script = SCRIPT.format(
            variables="\n".join(
                f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items()
            ),
            arguments=shlex.join(launch.argv[1:]),
        )
        self._jobs_at = -math.inf
        try:
            run_command(line, script)
        except SlurmError:
            jobs = self._list_jobs()
            if jobs is not None and ref["job"] not in jobs:
                raise
        return ref  # after a timeout, the next poll shows if the job was submitted

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """The status of jobs, from Slurm's list of jobs."""
        jobs = self._list_jobs()
        if jobs is None:
            return [PollResult("unknown")] * len(refs)
        return [_result(jobs.get(ref["job"])) for ref in refs]

    def stop(self, ref: Ref) -> None:
        """Send SIGTERM to the process of the run, but not to its children."""
        self._cancel(ref, "--batch", "--signal=TERM")

    def kill(self, ref: Ref) -> None:
        """Cancel the job."""
        self._cancel(ref)

    def _cancel(self, ref: Ref, *options: str) -> None:
        now, request = self._clock(), f"{ref['job']} {options}"
        if now - self._stopped_at.get(request, -math.inf) >= JOBS_CACHE_S:
            self._stopped_at[request] = now
            try:
                run_command(["scancel", "--me", f"--name={ref['job']}", *options])
            except SlurmError:
                return  # the supervisor repeats the request

    def forget(self, ref: Ref) -> None:
        """Forget the stop requests of the job."""
        prefix = f"{ref['job']} "
        for request in [request for request in self._stopped_at if request.startswith(prefix)]:
            del self._stopped_at[request]


def _result(job: Mapping[str, Any] | None) -> PollResult:
    """The status of a job in Slurm's list; None if the list lacks it, as it ended long ago."""
    if job is None:
        return PollResult("exited")
    states = job["job_state"] if isinstance(job["job_state"], list) else [job["job_state"]]
    if "COMPLETING" in states or not ENDED_STATES & {*states}:
        return PollResult("running")
    if states == ["COMPLETED"]:
        return PollResult("exited", 0)
    why = f"Slurm: {', '.join(states)}, {job.get('state_reason', '')}"
    code = job.get("exit_code") or {}
    signal = _number((code.get("signal") or {}).get("id"))
    return PollResult("exited", -signal or _number(code.get("return_code")) or None, why)


def _number(value: object) -> int:
    """The value of Slurm's {"set": true, "infinite": false, "number": 9}; 0 if it is not set."""
    return int(value["number"]) if isinstance(value, dict) and value.get("set") else 0


def described(settings: Settings) -> str:
    """A one-line description of the cluster.

    Raises:
        SlurmError: Slurm does not answer.
    """
    version = run_command(["squeue", "--version"]).strip()
    partitions = run_command(["sinfo", "--summarize", "--noheader"]).splitlines()
    return f"{version}, {len(partitions)} partitions"


def engine_from_settings(settings: Settings) -> SlurmEngine:
    """The engine of the cluster in the settings."""
    arguments = shlex.split(settings.slurm_args)
    return SlurmEngine(settings.slots, settings.threads or 1, settings.job_gpus, arguments)
