"""The local engine with forked job processes, and forks in place of the supervisor and the
playground.

Where weights are compared, an attempt that goes on with a killed one is a fresh process as in
production: that they are the same must not rest on what forks share.
"""

import importlib
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from backend.queue import launcher, supervisor
from backend.queue.engines.base import LaunchRequest, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.store.session import reading
from backend.store.tables import Attempt
from jobs.runtime.main import main
from tests.fork_server import FORKS, begin_anew
from tests.waiting import LIMIT_S


@dataclass
class ForkedProcess:
    """As much of `subprocess.Popen` as the engine uses."""

    process: ForkServerProcess

    def poll(self) -> int | None:
        """The exit code, once the process has ended; -9 after a SIGKILL."""
        return self.process.exitcode


class ForkedSpare(ForkedProcess):
    """A fork that waits for its run: as much of `subprocess.Popen` as `SpareProcess` uses."""

    def __init__(self, launch: LaunchRequest) -> None:
        reader, writer = FORKS.Pipe(duplex=False)
        with reader, writer:
            super().__init__(FORKS.Process(target=run_attempt, args=(launch, reader)))
            self.process.start()
            self.stdin = os.fdopen(os.dup(writer.fileno()), "wb", buffering=0)
        self.pid, self.kill = self.process.pid, self.process.kill

    def wait(self, timeout_s: float = LIMIT_S) -> int | None:
        self.process.join(timeout_s)
        return self.poll()

    def communicate(self) -> None:
        self.stdin.close()
        self.process.join()


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


def run_attempt(launch: LaunchRequest, channel: "Connection[Any, Any] | None" = None) -> None:
    """The life of a forked job process.

    Args:
        channel: standard input of a spare process.
    """
    os.setsid()
    os.chdir(launch.folder)
    log = Path(launch.log or os.devnull)
    begin_anew(launch.environment, log, log)
    if channel:
        sys.stdin = os.fdopen(os.dup(channel.fileno()))
        channel.close()
    sys.argv = list(launch.argv[2:])
    sys.exit(main())


def fork_all() -> None:
    """From now on this process forks what it starts, and those processes do."""
    launcher.start_module = fork_module
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
