"""The local engine, with job processes forked from one that has imported torch already.

A fresh process spends four seconds of CPU on imports, more than most runs on the toy model take.
An attempt that goes on with a killed one is a fresh process as in production: that its weights are
the same must not rest on what two forks share, such as Python's hash seed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from backend.queue.engines.base import LaunchRequest, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.settings import settings
from backend.store.session import engine_for, reading
from backend.store.tables import Attempt
from jobs.kind import kinds
from jobs.runtime.main import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.fork_preload"])


@dataclass
class ForkedProcess:
    """As much of `subprocess.Popen` as the engine uses."""

    process: ForkServerProcess

    def poll(self) -> int | None:
        """The exit code, once the process has ended; -9 after a SIGKILL."""
        return self.process.exitcode


class ForkEngine(LocalEngine):
    """Forks first attempts; later ones are started as in production."""

    def launch(self, launch: LaunchRequest) -> Ref:
        with reading() as session:
            attempt = session.get_one(Attempt, launch.attempt_id)
        if attempt.n > 1:
            return super().launch(launch)
        process = FORKS.Process(target=run_attempt, args=(launch,))
        process.start()
        assert process.pid is not None
        while os.getpgid(process.pid) != process.pid:  # until then a kill would miss it
            time.sleep(0.001)
        self._children[process.pid] = ForkedProcess(process)
        return reference(process.pid)


def run_attempt(launch: LaunchRequest) -> None:
    """What `Popen` and a fresh interpreter do for an attempt."""
    os.setsid()
    os.chdir(launch.folder)
    os.environ.clear()
    os.environ.update(launch.environment)
    log = Path(launch.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    for cached in (settings, engine_for, kinds):
        cached.cache_clear()
    sys.argv = list(launch.argv[2:])
    sys.exit(main())
