"""Jobs as local processes, each in its own session, never forked. A process is identified by pid,
boot id and start tick, so a restarted supervisor finds its jobs again and never mistakes a reused
pid for a job.

A spare process is there before its run: it has imported what runs need, which takes a processor
three seconds, and waits. It is started as that of a run is, with the environment that the next run
will have, and told the rest by one line of JSON on its standard input; from then on nothing tells
the two apart. The end of its input, such as the death of its supervisor, is its own."""

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

GPUS = "CUDA_VISIBLE_DEVICES"  # read when a GPU is first used, unlike others, which imports read
PACKAGES = ("backend", "jobs")  # of ours, which a run imports
DEVICES = Path("/dev")  # where the driver lists the GPUs as nvidia0, nvidia1, …
# bytes of memory available; a spare process takes 0.4e9 of them
TO_START_SPARE, TO_KEEP_SPARE = 1.5e9, 0.5e9
NEXT_SPARE_S = 60.0  # after one that died by itself
BOOT = Path("/proc/sys/kernel/random/boot_id")
PIDS, OUTERMOST = Path("/proc/self/ns/pid"), "pid:[4026531836]"  # linux/proc_ns.h


class SpareProcess:
    """A process that waits for its run. `launch`: of no attempt; its last argument makes the
    process wait for those of one."""

    def __init__(self, launch: LaunchRequest) -> None:
        self._launch, self._code = launch, code_state(launch.folder)
        self._child = subprocess.Popen(
            launch.argv,
            cwd=launch.folder,
            env=_imported(launch.environment),
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def fits(self, launch: LaunchRequest) -> bool:
        """Whether it was started as the process of this launch would be."""
        mine, words = self._launch, len(self._launch.argv) - 1
        return (mine.folder, mine.argv[:words]) == (
            launch.folder,
            launch.argv[:words],
        ) and _imported(mine.environment) == _imported(launch.environment)

    def is_current(self) -> bool:
        """Whether the code on the disk is still what it has imported."""
        return self._code == code_state(self._launch.folder)

    def hand_over(self, launch: LaunchRequest, gpus: str | None) -> subprocess.Popen[bytes]:
        """Let it be the process of a launch that it fits, and see these GPUs; None: all. Raises
        OSError: it has died, and done nothing."""
        arguments = [*launch.argv[len(self._launch.argv) - 1 :], "--log", launch.log]
        environment = {} if gpus is None else {GPUS: gpus}
        task = {"arguments": arguments, "environment": environment}
        assert self._child.stdin
        with self._child.stdin as line:
            line.write(json.dumps(task).encode() + b"\n")
        return self._child

    def end(self) -> None:
        self._child.kill()  # it has started no other
        self._child.communicate()


def code_state(folder: str) -> frozenset[tuple[str, int]]:
    """The files with our code, and when each was changed."""
    files = (file for name in PACKAGES for file in Path(folder, name).rglob("*.py"))
    return frozenset((str(file), file.stat().st_mtime_ns) for file in files)


def _imported(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that imports may have read."""
    return {name: text for name, text in environment.items() if name != GPUS}


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
        return Room(self._slots)

    def reference(self, launch: LaunchRequest) -> None:
        """The kernel numbers a process when it starts."""

    def prepare(self, launch: LaunchRequest | None, start: bool) -> None:
        """Keep the spare process if it fits this launch, of no attempt yet, and `start` one if
        there is none. None: there is to be none. Nor is there one where memory is short."""
        if self._spare and not self._spare.is_alive():
            self._drop_spare()
            self._no_spare_before = time.monotonic() + NEXT_SPARE_S
        if self._spare:
            if launch is None or not self._spare.fits(launch) or memory_available() < TO_KEEP_SPARE:
                self._drop_spare()
            return
        may_start = start and time.monotonic() > self._no_spare_before
        if launch and may_start and memory_available() > TO_START_SPARE:
            self._spare = SpareProcess(launch)

    def _drop_spare(self) -> None:
        if self._spare:
            self._spare.end()
        self._spare = None

    def launch(self, launch: LaunchRequest) -> Ref:
        environment = {**launch.environment, **visible_gpu(launch, self._slots)}
        log = Path(launch.log)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = self._from_spare(launch, environment) or subprocess.Popen(
                launch.argv,
                cwd=launch.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        place(child.pid, cores_of(launch, self._slots), launch.nice)
        return reference(child.pid)

    def _from_spare(
        self, launch: LaunchRequest, environment: dict[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """The spare process, which carries out a launch from now on; None if there is none that
        fits and has the code of now. One that dies at this moment has not begun, or its attempt
        ends as any other whose process dies at its start."""
        spare = self._spare
        if spare is None or not spare.fits(launch):
            return None
        self._spare = None
        with contextlib.suppress(OSError):
            if spare.is_current():
                return spare.hand_over(launch, environment.get(GPUS))
        spare.end()
        return None

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        return [self._poll(ref) for ref in refs]

    def _poll(self, ref: Ref) -> PollResult:
        # one of a machine whose name was changed is the same until that is booted again
        is_ours = str(ref["identity"]).rpartition("/")[0] == boot()
        if ref.get("host", platform.node()) != platform.node() and not is_ours:
            return PollResult("unknown")
        pid = int(ref["pid"])
        if _leader(ref) is not None:
            return PollResult("running")
        child = self._children.get(pid)
        code = child.poll() if child else None  # also reaps it
        if child and code is None:  # a zombie with threads that are still exiting
            return PollResult("running")
        if any(_members(pid)) and not _reused(ref):
            self.kill(ref)  # a dead leader's workers must not hold the slot's device
            return PollResult("running")
        self._children.pop(pid, None)
        return PollResult("exited", code)

    def stop(self, ref: Ref) -> None:
        if leader := _leader(ref):
            with contextlib.suppress(psutil.NoSuchProcess):
                leader.terminate()

    def kill(self, ref: Ref) -> None:
        if not _reused(ref):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(ref["pid"]), signal.SIGKILL)

    def forget(self, ref: Ref) -> None:
        """A process that was waited for is forgotten already."""


def installed_gpus() -> list[int]:
    """The numbers of the GPUs the driver lists, whether or not torch can use them."""
    return sorted(int(p.name.removeprefix("nvidia")) for p in DEVICES.glob("nvidia[0-9]*"))


def visible_gpu(launch: LaunchRequest, slots: int) -> dict[str, str]:
    """The variable that shows a job the GPU of its slot alone. Not where the job names a GPU, or
    where there is only one."""
    named = launch.environment.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [*map(str, installed_gpus())]
    if slots == 1 or len(gpus) < 2 or ":" in launch.device:
        return {}
    place = launch.slot * max(1, len(gpus) // slots) % len(gpus)
    return {"CUDA_VISIBLE_DEVICES": gpus[place]}


def cores_of(launch: LaunchRequest, slots: int) -> list[int]:
    """The cores of a slot, an equal part of those there are; empty where a job may use all, as with
    one slot or with more threads than cores in its part."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // slots
    if slots == 1 or not share or max(launch.threads, settings().threads) > share:
        return []
    return cores[launch.slot * share : (launch.slot + 1) * share]


def place(pid: int, cores: list[int], nice: int) -> None:
    """Give a process these cores, and let it stand back for others; imports may have left it with
    threads, each of which the kernel places by itself. None of them is lost: those that the first
    starts meanwhile follow it."""
    for thread in [pid, *(int(each.name) for each in Path(f"/proc/{pid}/task").glob("*"))]:
        with contextlib.suppress(OSError, AttributeError):  # it has ended; macOS cannot pin
            if nice:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            if cores:
                os.sched_setaffinity(thread, cores)


def reference(pid: int) -> Ref:
    """The reference of a local process. Where other machines use the same database, it names this
    one."""
    ref: Ref = {"pid": pid, "identity": identity(pid)}
    alone = dialect_of(engine_for(settings().url)).one_machine
    return ref if alone else ref | {"host": platform.node()}


def boot() -> str:
    """The id of the current boot; empty if the platform has none. Containers of one machine share
    it, but do not see each other's processes, so it also names the numbering of those."""
    if not BOOT.exists():
        return ""
    numbering = str(PIDS.readlink()) if PIDS.is_symlink() else OUTERMOST
    return BOOT.read_text().strip() + f" {numbering}" * (numbering != OUTERMOST)


def identity(pid: int) -> str:
    """A unique id of a process: boot id and start time in clock ticks since the boot, which do not
    change when the clock is set."""
    stat = Path(f"/proc/{pid}/stat")
    if not boot():
        return f"/{psutil.Process(pid).create_time()}"
    return f"{boot()}/{stat.read_text().rpartition(')')[2].split()[19]}"  # field 22 of proc(5)


def _reused(ref: Ref) -> bool:
    """Whether the pid belongs to another process now, or is from another boot."""
    try:
        return identity(int(ref["pid"])) != ref["identity"]
    except (OSError, psutil.NoSuchProcess):
        return boot() != str(ref["identity"]).rpartition("/")[0]


def _leader(ref: Ref) -> psutil.Process | None:
    """The main process of a job if it is alive; zombies are not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(ref["pid"]))
        if not _reused(ref) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _members(group: int) -> list[int]:
    """Live processes of a process group, without its leader."""
    members = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and process.pid != group and os.getpgid(process.pid) == group:
                members.append(process.pid)
    return members
