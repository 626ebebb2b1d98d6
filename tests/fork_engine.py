"""The local engine with forked job processes, and forks in place of the supervisor and the
playground.

Where weights are compared, an attempt that goes on with a killed one is a fresh process as in
production: that they are the same must not rest on what forks share.
"""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import BinaryIO

from backend.queue import launcher, supervisor
from backend.queue.engines.base import LaunchRequest, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.settings import settings
from backend.store.session import engine_for, reading
from backend.store.tables import Attempt
from jobs.kind import kinds
from jobs.runtime import followers
from jobs.runtime.followers import main as follow
from jobs.runtime.main import main
from tests.fork_server import FORKS, begin_anew


@dataclass
class ForkedProcess:
    """As much of `subprocess.Popen` as the engine uses."""

    process: ForkServerProcess

    def poll(self) -> int | None:
        """The exit code, once the process has ended; -9 after a SIGKILL."""
        return self.process.exitcode


class ForkEngine(LocalEngine):
    """Forks attempts in place of starting them.

    Attributes:
        again: whether later attempts than the first are forked, too.
    """

    again = True

    def prepare(self, *_: object) -> None:
        """Forks have imported everything."""

    def launch(self, launch: LaunchRequest) -> Ref:
        with reading() as session:
            attempt = session.get_one(Attempt, launch.attempt_id)
        if attempt.n > 1 and not self.again:
            return super().launch(launch)
        Path(launch.log).parent.mkdir(parents=True, exist_ok=True)
        process = FORKS.Process(target=run_attempt, args=(launch,))
        process.start()
        assert process.pid is not None
        while os.getpgid(process.pid) != process.pid:  # until then a kill would miss it
            time.sleep(0.001)
        self._children[process.pid] = ForkedProcess(process)
        return reference(process.pid)


def run_attempt(launch: LaunchRequest) -> None:
    """The life of a forked job process."""
    os.setsid()
    os.chdir(launch.folder)
    begin_anew(launch.environment, Path(launch.log), Path(launch.log))
    sys.argv = list(launch.argv[2:])
    followers.started = fork_follower
    sys.exit(main())


def fork_all() -> None:
    """From now on this process forks what it starts, and those processes do."""
    launcher.started = fork_module
    supervisor.engine_of = lambda here: ForkEngine(here.slots)


def fork_module(module: str, log: Path) -> ForkedProcess:
    """In place of `python -m module`."""
    process = FORKS.Process(target=run_module, args=(module, launcher.child_environment(), log))
    process.start()
    return ForkedProcess(process)


def run_module(module: str, environment: dict[str, str], log: Path) -> None:
    """The life of a forked supervisor or playground."""
    os.setsid()
    os.chdir(launcher.CODE)
    begin_anew(environment, log, log)
    fork_all()
    importlib.import_module(module).main()


class ForkedFollower:
    """As much of `subprocess.Popen` as a run uses of a process that trains with it."""

    def __init__(self, pid: int, stdin: BinaryIO) -> None:
        self.pid, self.stdin = pid, stdin
        self._lock, self._code = threading.Lock(), None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("follower", timeout)
            time.sleep(0.01)
        return code

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        with self._lock:  # two threads wait
            if self._code is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
                self._code = os.waitstatus_to_exitcode(ended[1])
            return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def fork_follower(environment: dict[str, str]) -> ForkedFollower:
    """In place of a fresh process: a fork of this one, which is warm."""
    theirs, ours = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        return ForkedFollower(pid, os.fdopen(ours, "wb"))
    os.close(ours)
    sys.stdin = os.fdopen(theirs)
    os.environ.clear()
    os.environ.update(environment)
    for cached in (settings, engine_for, kinds):
        cached.cache_clear()
    os._exit(follow())
