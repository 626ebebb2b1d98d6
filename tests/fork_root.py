"""The process that limited children are forked from, itself a fork of one that has imported
everything. A fresh one spends three seconds of CPU on the imports of every model that it builds."""

import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import current_process
from pathlib import Path
from threading import Lock
from typing import Any

from backend import limited
from tests.fork_server import FORKS, begin_anew

FreshRoot = limited._Root


class ForkedRoot(limited.LimitedChild):
    """As much of `limited._Root` as its children use."""

    def __init__(self) -> None:
        self._lock, self._pid = Lock(), None
        self._channel, child_end = FORKS.Pipe()
        with child_end:
            self._process = FORKS.Process(target=run_root, args=(child_end,), daemon=True)
            self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def abandon(self) -> None:
        self._process.kill()
        self._process.join()


def new_root() -> "ForkedRoot | limited._Root":
    """A daemon of multiprocessing may not have children of that module: it starts a fresh one."""
    return FreshRoot() if current_process().daemon else ForkedRoot()


def run_root(channel: "Connection[Any, Any]") -> None:
    """The life of the forked process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nowhere = Path(os.devnull)
    begin_anew({**os.environ, **limited.SINGLE_THREADED}, nowhere, nowhere)
    limited.serve(channel)


def fork_roots() -> None:
    """From now on limited children of this process come from a fork."""
    limited._Root = new_root  # type: ignore[assignment, misc]
