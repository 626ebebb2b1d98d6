"""The local engine with forked job processes.

An attempt that goes on with a killed one is a fresh process as in production: that its weights are
the same must not rest on what forks share.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from backend.queue.engines.base import LaunchRequest, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.store.session import reading
from backend.store.tables import Attempt
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
    """Forks first attempts; later ones are started as in production.

    Attributes:
        again: fork later attempts, too: where no weights are compared.
    """

    def __init__(self, slots: int, *, again: bool = False) -> None:
        super().__init__(slots)
        self.again = again

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
    sys.exit(main())
