"""Jobs on a Slurm cluster, by the commands of a login node: sbatch, squeue, scancel. The order is
the site's: as many runs are submitted as there are slots, and wait there. A job is known by its
name, which follows from the attempt."""

import json
import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backend.queue.engines.base import LaunchRequest, PollResult, Ref, Room
from backend.settings import Settings

ANSWER_S = 10.0  # within which a command has to end
JOBS_S = 5.0  # for which the list of jobs is good, and before a stop is repeated
ENDED = {
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
    """A command of Slurm did not do what it was asked."""


def run_command(line: Sequence[str], given: str = "") -> str:
    """The output of a command; `SlurmError` if it failed, was too slow, or is not installed."""
    try:
        done = subprocess.run(line, input=given, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"{line[0]} does not answer: {error}") from error
    if done.returncode:
        raise SlurmError(f"{line[0]} failed: {done.stderr.strip()}")
    return done.stdout


class SlurmEngine:
    """Submits each attempt as a batch job with `cpus` cores and `gpus` GPUs of one machine, `jobs`
    at the same time. `arguments`: of sbatch, decided by the site: partition, account, time."""

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
        self._jobs: dict[str, dict[str, Any]] | None = None  # by name; None: Slurm is silent
        self._jobs_at = -math.inf
        self._stopped: dict[str, float] = {}  # job -> when it was last asked to stop

    def room(self) -> Room:
        return Room(self._places, known=self._listed() is not None)

    def _listed(self) -> dict[str, dict[str, Any]] | None:
        """Our jobs at work, and those that have ended lately; None while Slurm does not answer."""
        if self._clock() - self._jobs_at >= JOBS_S:
            try:
                listed = json.loads(run_command(["squeue", "--json", "--me", "--states=all"]))
                self._jobs = {job["name"]: job for job in listed["jobs"]}
            except (SlurmError, ValueError, KeyError, TypeError):
                self._jobs = None
            self._jobs_at = self._clock()  # by now: a command that hangs takes long
        return self._jobs

    def reference(self, launch: LaunchRequest) -> Ref:
        return {"job": f"slimscope-{launch.attempt_id}-{launch.token[:8]}"}

    def launch(self, launch: LaunchRequest) -> Ref:
        ref = self.reference(launch)
        line = [
            "sbatch",
            "--parsable",
            f"--job-name={ref['job']}",
            "--no-requeue",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={self._cpus}",
            "--signal=B:USR1@120",  # seconds before its time is over or it is preempted
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
            listed = self._listed()
            if listed is not None and ref["job"] not in listed:
                raise
        return ref  # whether it was submitted after all, the next poll says

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        listed = self._listed()
        if listed is None:
            return [PollResult("unknown")] * len(refs)
        return [_result(listed.get(ref["job"])) for ref in refs]

    def stop(self, ref: Ref) -> None:
        """SIGTERM to the process of the run, without its children."""
        self._cancel(ref, "--batch", "--signal=TERM")

    def kill(self, ref: Ref) -> None:
        self._cancel(ref)

    def _cancel(self, ref: Ref, *how: str) -> None:
        now, asked = self._clock(), f"{ref['job']} {how}"
        if now - self._stopped.get(asked, -math.inf) >= JOBS_S:
            self._stopped[asked] = now
            try:
                run_command(["scancel", "--me", f"--name={ref['job']}", *how])
            except SlurmError:
                return  # asked again

    def forget(self, ref: Ref) -> None:
        for asked in [each for each in self._stopped if each.startswith(f"{ref['job']} ")]:
            del self._stopped[asked]


def _result(job: Mapping[str, Any] | None) -> PollResult:
    """What became of a job; one that Slurm has forgotten has ended long ago."""
    if job is None:
        return PollResult("exited")
    states = job["job_state"] if isinstance(job["job_state"], list) else [job["job_state"]]
    if "COMPLETING" in states or not ENDED & {*states}:
        return PollResult("running")
    if states == ["COMPLETED"]:
        return PollResult("exited", 0)
    why = f"Slurm: {', '.join(states)}, {job.get('state_reason', '')}"
    code = job.get("exit_code") or {}
    signal = _number((code.get("signal") or {}).get("id"))
    return PollResult("exited", -signal or _number(code.get("return_code")) or None, why)


def _number(value: object) -> int:
    """A number as Slurm writes it: {"set": true, "infinite": false, "number": 9}."""
    return int(value["number"]) if isinstance(value, dict) and value.get("set") else 0


def described(here: Settings) -> str:
    """The cluster in words; `SlurmError` if Slurm does not answer."""
    version = run_command(["squeue", "--version"]).strip()
    partitions = run_command(["sinfo", "--summarize", "--noheader"]).splitlines()
    return f"{version}, {len(partitions)} partitions"


def made(here: Settings) -> SlurmEngine:
    return SlurmEngine(here.slots, here.threads or 1, here.job_gpus, shlex.split(here.slurm_args))
