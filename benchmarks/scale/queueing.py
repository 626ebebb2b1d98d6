"""Short runs through the queue: how many a minute, and how soon one begins. A run counts to three
and computes nothing, so what is measured is queue, engine and start of a process."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from backend.queue import service
from backend.queue.actor import Actor
from backend.queue.engines import engine_of
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import State
from jobs.kind import kinds
from jobs.submit import submit
from tests import postgres
from tests.cluster.nodes import ROOT, RayCluster

ME = Actor("the benchmark", "host")
MOST_S = 600.0
LOOK_S = 0.02


def measure(engine: str, places: int, jobs: int, probes: int) -> dict[str, Any]:
    """Jobs a minute, and median seconds from submission to the first progress with an empty queue.
    `jobs`: how many are queued at once; probes: how many one after the other."""
    service.wake_supervisor = lambda: None  # this process is the one that supervises
    with _places(engine, places):
        engine_there = engine_of(settings())
        loop = SupervisorLoop(engine_there)
        until(loop, lambda: engine_there.room().places >= places)
        soon = [_first_progress(loop) for _ in range(probes)]
        began = time.monotonic()
        queued = [submit("count", {"steps": 3, "pause": 0.0}, ME).id for _ in range(jobs)]
        until(loop, lambda: all(queries.job(n).state == State.SUCCEEDED for n in queued))
        took = time.monotonic() - began
    return {
        "engine": engine,
        "places": places,
        "per minute": 60 * jobs / took,
        "first progress": median(soon),
    }


def until(loop: SupervisorLoop, holds: Callable[[], bool]) -> None:
    """Turn the loop, as the supervisor does, until something holds."""
    deadline = time.monotonic() + MOST_S
    while not holds():
        assert time.monotonic() < deadline
        loop.turn()
        time.sleep(LOOK_S)


def _first_progress(loop: SupervisorLoop) -> float:
    began = time.monotonic()
    run = submit("count", {"steps": 3, "pause": 0.5}, ME).id
    until(loop, lambda: queries.job(run).stage in ("counting", "done"))
    soon = time.monotonic() - began
    until(loop, lambda: queries.job(run).state == State.SUCCEEDED)
    return soon


@contextmanager
def _places(engine: str, places: int) -> Iterator[None]:
    """A data folder with so many places, on this machine or on a cluster of as many nodes."""
    with tempfile.TemporaryDirectory(prefix="ss-") as folder, ExitStack() as stack:
        chosen = {
            "DATA_DIR": folder,
            "SLOTS": str(places),
            "THREADS": "1",
            "EXAMPLES": "false",
            "PLUGINS": '["tests.plugins.job_kind"]',
        }
        if engine == "ray":
            url = stack.enter_context(postgres.database(os.environ[postgres.SERVER]))
            chosen |= {"DATABASE_URL": url}
        _set(chosen)
        upgrade()
        if engine == "ray":
            cluster = stack.enter_context(_cluster(places))
            _set({"ENGINE": "ray", "RAY_ADDRESS": cluster.address, "RAY_TOKEN": cluster.token})
        yield


def _set(chosen: dict[str, str]) -> None:
    os.environ.update({f"SLIMSCOPE_{name}": value for name, value in chosen.items()})
    settings.cache_clear()
    kinds.cache_clear()


@contextmanager
def _cluster(nodes: int) -> Iterator[RayCluster]:
    """A Ray cluster on this machine, of nodes with one processor each."""
    here = settings()
    told = {
        "SLIMSCOPE_PYTHON": f"env PYTHONPATH={ROOT} {sys.executable}",
        "SLIMSCOPE_DATABASE_URL": here.database_url,
        "SLIMSCOPE_DATA_DIR": str(here.root),
        "SLIMSCOPE_PLUGINS": '["tests.plugins.job_kind"]',
    }
    with tempfile.TemporaryDirectory(prefix="sr-", ignore_cleanup_errors=True) as folder:
        made = RayCluster(Path(folder), told)
        try:
            made.start_head()
            for number in range(1, nodes + 1):
                made.start_node(number)
            yield made
        finally:
            made.stop()
