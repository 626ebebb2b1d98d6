"""Processes forked from one that has imported everything, in place of fresh ones.

A fresh process of ours spends two to four seconds of CPU on imports, more than most tests have it
do. Forks share what a fresh process would draw anew, such as Python's hash seed, and weigh less.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import TypeVar

from backend.settings import settings
from backend.store.session import engine_for
from jobs.kind import kinds

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.fork_preload"])

T = TypeVar("T")


def elsewhere(function: Callable[..., T], *given: object) -> T:
    """What a function of a module returns in another process, whose hash seed is another."""
    with FORKS.Pool(1) as pool:
        return pool.apply(function, given)


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
