"""Processes forked from one that has imported everything, in place of fresh ones.

A fresh process of ours spends two to four seconds of CPU on imports, more than most tests have it
do. Forks share what a fresh process would draw anew, such as Python's hash seed, and weigh less.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import current_process
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from backend import limited
from backend.settings import settings
from backend.store.session import engine_for
from jobs.kind import kinds

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.fork_preload"])
ADDRESS = "SLIMSCOPE_TEST_FORKS"  # of the server that all processes of tests share

T = TypeVar("T")


def share_server() -> None:
    """Starts the server for this process and those it starts: one imports everything."""
    forkserver.ensure_running()
    os.environ[ADDRESS] = forkserver._forkserver._forkserver_address


def use_shared_server() -> None:
    """Forks come from the server of the process that has started this one."""
    server = forkserver._forkserver
    server._forkserver_address = os.environ[ADDRESS]
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # it does not live for us
    server.ensure_running = resource_tracker.ensure_running


def elsewhere(function: Callable[..., T], *given: object) -> T:
    """What a function of a module returns in another process, whose hash seed is another."""
    with FORKS.Pool(1) as pool:
        return pool.apply(function, given)


def serve_plain(channel: "Connection[Any, Any]") -> None:
    """Answers as `plain_transformers`, after it has forgotten what was imported of Slimscope."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("backend", "jobs", "ui"):
            del sys.modules[name]
    answer = importlib.import_module("tests.plain_transformers").answer
    with suppress(EOFError):
        while True:
            channel.send(answer(**channel.recv()))


def begin_anew(environment: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    """Makes a fork what a fresh process would be: its environment, its output, nothing cached."""
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    for cached in (settings, engine_for, kinds):
        cached.cache_clear()
    # A fork knows the server, and is meant to use it, but `ensure_running` starts one of its own.
    forkserver._forkserver.ensure_running = lambda: None


# limited children ---------------------------------------------------------------------------------

FreshRoot = limited._Root


class ForkedRoot(limited.LimitedChild):
    """As much of `limited._Root` as its children use, forked from a process that has imported
    everything. A fresh one spends three seconds of CPU on the imports for every model it builds."""

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
