"""Watching runs on a cluster."""

import time
from collections.abc import Callable

from backend.queue.artifacts import work_folder
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.states import State
from jobs.submit import submit
from tests.jobs.kinds import test_amphista, test_dlqat, test_sds
from tests.queue.conftest import HOST
from tests.waiting import awaited

Until = Callable[..., None]
SMALL = {"sds": test_sds.SMALL, "dlqat": test_dlqat.SMALL, "amphista": test_amphista.SMALL}


def turning(loop: SupervisorLoop) -> Until:
    """What turns a loop until something holds, and prints how long that took."""

    def until(holds: Callable[[], bool], within_s: float = 150.0, what: str = "") -> None:
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < within_s, what or awaited(holds)
            loop.turn()
            time.sleep(0.25)
        if what:
            print(f"{what} after {time.monotonic() - began:.1f} s")

    return until


def is_in(run: int, *states: State) -> Callable[[], bool]:
    return lambda: queries.job(run).state in states


def has_done(run: int, step: int) -> Callable[[], bool]:
    return lambda: (work_folder(queries.job(run).run) / f"step-{step}").exists()


def assert_counted(run: int, steps: int) -> None:
    """Every point is there, once."""
    curves = frames.curves(run)
    assert sorted(curves[curves["family"] == "count"]["value"]) == [*range(steps)]
    assert [r.value for r in queries.results([run])] == [steps]


def assert_same_here(there: int) -> None:
    """The same run on this machine saves the same weights."""
    job = queries.job(there)
    here = submit(job.kind, job.config, HOST).id
    turning(SupervisorLoop(LocalEngine(1)))(is_in(here, State.SUCCEEDED, State.FAILED))
    assert job.environment["weights_sha256"] == queries.job(here).environment["weights_sha256"]
