"""Jobs as local processes, each in its own session, never forked.

A process is identified by pid, boot id and start time, so that a restarted supervisor finds its
jobs again and never mistakes a reused pid for a job.

A spare process is a pre-warmed process for the next run. It has imported the modules of a run,
which takes three seconds of processor time. It starts with the environment of the next run, waits
for one line of JSON on its standard input with the rest, and is the run's process from then on. It
exits at the end of its input, for example when its supervisor dies."""

import contextlib
import json
import math
import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from backend.models.memory import memory_available
from backend.queue.engines.base import LaunchRequest, PollResult, Ref, Room
from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.session import engine_for

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"  # unlike other variables, it is read after the imports
PACKAGES = ("backend", "jobs")  # our packages that a run imports
DEVICE_FOLDER = Path("/dev")  # the driver lists the GPUs here as nvidia0, nvidia1, …
# available memory in bytes; a spare process takes 0.4e9
MEMORY_TO_START_SPARE, MEMORY_TO_KEEP_SPARE = 1.5e9, 0.5e9
SPARE_RETRY_S = 60.0  # wait after a spare process has died
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE, INITIAL_NAMESPACE = Path("/proc/self/ns/pid"), "pid:[4026531836]"  # linux/proc_ns.h


class SpareProcess:
    """A process that waits for the next run.

    Args:
        launch: a request without an attempt, whose last argument makes the process wait for the
            arguments of a run.
    """

    def __init__(self, launch: LaunchRequest) -> None:
        self._launch, self._code = launch, code_state(launch.folder)
        self._child = subprocess.Popen(
            launch.argv,
            cwd=launch.folder,
            env=_import_environment(launch.environment),
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        """Return True while the process waits."""
        return self._child.poll() is None

    def fits(self, launch: LaunchRequest) -> bool:
        """Return True if a launch has the folder, command and variables of this process."""
        spare, words = self._launch, len(self._launch.argv) - 1
        return (
            spare.folder == launch.folder
            and spare.argv[:words] == launch.argv[:words]
            and _import_environment(spare.environment) == _import_environment(launch.environment)
        )

    def is_current(self) -> bool:
        """Return True if the code on the disk is still the code that the process has imported."""
        return self._code == code_state(self._launch.folder)

    def hand_over(self, launch: LaunchRequest, gpus: str | None) -> subprocess.Popen[bytes]:
        """Make this the process of a launch that it fits.

        Args:
            gpus: visible GPUs, as in `CUDA_VISIBLE_DEVICES`; None for all.

        Raises:
            OSError: the process has died before it did anything.
        """
        arguments = [*launch.argv[len(self._launch.argv) - 1 :], "--log", launch.log]
        environment = {} if gpus is None else {GPU_VARIABLE: gpus}
        task = {"arguments": arguments, "environment": environment}
        assert self._child.stdin
        with self._child.stdin as line:
            line.write(json.dumps(task).encode() + b"\n")
        return self._child

    def end(self) -> None:
        """End the process."""
        self._child.kill()  # it has no children
        self._child.communicate()


def code_state(folder: str) -> frozenset[tuple[str, int]]:
    """Path and modification time of each file of our code."""
    files = (file for name in PACKAGES for file in Path(folder, name).rglob("*.py"))
    return frozenset((str(file), file.stat().st_mtime_ns) for file in files)


def _import_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that imports may read."""
    return {name: text for name, text in environment.items() if name != GPU_VARIABLE}


class LocalEngine:
    """Runs each attempt as a child process in its own session."""

    name = "local"
    remote = False

    def __init__(self, slots: int) -> None:
        self.host = platform.node()
        self._slots = slots
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._spare: SpareProcess | None = None
        self._no_spare_before = -math.inf

    def room(self) -> Room:
        """One place per slot."""
        return Room(self._slots)

    def reference(self, launch: LaunchRequest) -> None:
        """None: the kernel assigns the pid when the process starts."""

    def prepare(self, launch: LaunchRequest | None, start: bool) -> None:
        """Keep, start or end the spare process; memory must suffice for it.

        Args:
            launch: expected launch, without an attempt; None for no spare process.
            start: start a spare process if there is none.
        """
        if self._spare and not self._spare.is_alive():
            self._drop_spare()
            self._no_spare_before = time.monotonic() + SPARE_RETRY_S
        if self._spare:
            if (
                launch is None
                or not self._spare.fits(launch)
                or memory_available() < MEMORY_TO_KEEP_SPARE
            ):
                self._drop_spare()
            return
        may_start = start and time.monotonic() > self._no_spare_before
        if launch and may_start and memory_available() > MEMORY_TO_START_SPARE:
            self._spare = SpareProcess(launch)

    def _drop_spare(self) -> None:
        if self._spare:
            self._spare.end()
        self._spare = None

    def launch(self, launch: LaunchRequest) -> Ref:
        """Start a process, or hand the launch to the spare process."""
        environment = {**launch.environment, **visible_gpu(launch, self._slots)}
        log = Path(launch.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = self._take_spare(launch, environment) or subprocess.Popen(
                launch.argv,
                cwd=launch.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        set_scheduling(child.pid, cores_of(launch, self._slots), launch.nice)
        return reference(child.pid)

    def _take_spare(
        self, launch: LaunchRequest, environment: dict[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Hand a launch to the spare process; None if there is none with this environment and the
        present code.

        If the process dies meanwhile, it has either not begun, or its attempt ends like any other
        whose process dies at its start."""
        spare = self._spare
        if spare is None or not spare.fits(launch):
            return None
        self._spare = None
        with contextlib.suppress(OSError):
            if spare.is_current():
                return spare.hand_over(launch, environment.get(GPU_VARIABLE))
        spare.end()
        return None

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """The status of processes; "unknown" for those of other machines."""
        return [self._poll(ref) for ref in refs]

    def _poll(self, ref: Ref) -> PollResult:
        # the host name may have changed since the boot
        is_same_boot = str(ref["identity"]).rpartition("/")[0] == boot_id()
        if ref.get("host", platform.node()) != platform.node() and not is_same_boot:
            return PollResult("unknown")
        pid = int(ref["pid"])
        if _leader(ref) is not None:
            return PollResult("running")
        child = self._children.get(pid)
        code = child.poll() if child else None  # also reaps it
        if child and code is None:  # a zombie with threads that are still exiting
            return PollResult("running")
        if any(_group_members(pid)) and not _is_reused(ref):
            self.kill(ref)  # orphaned children must not hold the slot's device
            return PollResult("running")
        self._children.pop(pid, None)
        return PollResult("exited", code)

    def stop(self, ref: Ref) -> None:
        """Send SIGTERM to the main process."""
        if leader := _leader(ref):
            with contextlib.suppress(psutil.NoSuchProcess):
                leader.terminate()

    def kill(self, ref: Ref) -> None:
        """Send SIGKILL to the process group."""
        if not _is_reused(ref):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(ref["pid"]), signal.SIGKILL)

    def forget(self, ref: Ref) -> None:
        """Do nothing: `poll` has already forgotten the process."""


def installed_gpus() -> list[int]:
    """Numbers of the GPUs that the driver lists; torch may support fewer."""
    return sorted(int(p.name.removeprefix("nvidia")) for p in DEVICE_FOLDER.glob("nvidia[0-9]*"))


def visible_gpu(launch: LaunchRequest, slots: int) -> dict[str, str]:
    """The variable that limits a job to the GPU of its slot; empty if the job names a GPU, or if
    there is only one slot or GPU."""
    inherited = launch.environment.get(GPU_VARIABLE)
    gpus = inherited.split(",") if inherited else [*map(str, installed_gpus())]
    if slots == 1 or len(gpus) < 2 or ":" in launch.device:
        return {}
    index = launch.slot * max(1, len(gpus) // slots) % len(gpus)
    return {GPU_VARIABLE: gpus[index]}


def cores_of(launch: LaunchRequest, slots: int) -> list[int]:
    """The cores of a slot, an equal part of all; empty if the job may use all cores.

    A job may use all with a single slot, or if it has more threads than the slot has cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // slots
    if slots == 1 or not share or max(launch.threads, settings().threads) > share:
        return []
    return cores[launch.slot * share : (launch.slot + 1) * share]


def set_scheduling(pid: int, cores: list[int], nice: int) -> None:
    """Set the cores and the niceness of a process and all its threads.

    The kernel schedules each thread individually, and imports may have started some. Threads that
    the main thread starts later inherit its settings."""
    for thread in [pid, *(int(task.name) for task in Path(f"/proc/{pid}/task").glob("*"))]:
        with contextlib.suppress(OSError, AttributeError):  # the thread has ended; macOS cannot pin
            if nice:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            if cores:
                os.sched_setaffinity(thread, cores)


def reference(pid: int) -> Ref:
    """The reference of a local process, with the host name if other machines use the database."""
    ref: Ref = {"pid": pid, "identity": identity(pid)}
    is_only_machine = dialect_of(engine_for(settings().url)).one_machine
    return ref if is_only_machine else ref | {"host": platform.node()}


def boot_id() -> str:
    """The id of the current boot, with the pid namespace of a container; empty if the platform has
    none.

    Containers of one machine share the boot id, but not their pids."""
    if not BOOT_ID.exists():
        return ""
    namespace = str(PID_NAMESPACE.readlink()) if PID_NAMESPACE.is_symlink() else INITIAL_NAMESPACE
    return BOOT_ID.read_text().strip() + f" {namespace}" * (namespace != INITIAL_NAMESPACE)


def identity(pid: int) -> str:
    """A unique id of a process: boot id, and start time in clock ticks since the boot.

    Neither changes when the clock is set."""
    stat = Path(f"/proc/{pid}/stat")
    if not boot_id():
        return f"/{psutil.Process(pid).create_time()}"
    return f"{boot_id()}/{stat.read_text().rpartition(')')[2].split()[19]}"  # field 22 of proc(5)


def _is_reused(ref: Ref) -> bool:
    """Return True if the pid now belongs to another process, or is from another boot."""
    try:
        return identity(int(ref["pid"])) != ref["identity"]
    except (OSError, psutil.NoSuchProcess):
        return boot_id() != str(ref["identity"]).rpartition("/")[0]


def _leader(ref: Ref) -> psutil.Process | None:
    """The main process of a job if it is alive and not a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(ref["pid"]))
        if not _is_reused(ref) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _group_members(group: int) -> list[int]:
    """Live processes of a process group, without its leader."""
    members = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and process.pid != group and os.getpgid(process.pid) == group:
                members.append(process.pid)
    return members
