"""Runs on a real Slurm cluster, whose commands are on the path, with a real PostgreSQL that its
nodes reach: `make test-slurm`. Not part of `make test`."""

import os
import sys
from pathlib import Path

import pytest

from backend.queue import service
from backend.queue.artifacts import read_log
from backend.queue.engines import engine_of
from backend.queue.engines.slurm import run_command
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from jobs.kind import kinds
from jobs.submit import submit
from tests.cluster.nodes import ROOT
from tests.cluster.watching import (
    SMALL,
    Until,
    assert_counted,
    assert_same_here,
    has_done,
    is_in,
    turning,
)
from tests.queue.conftest import HOST, queue

__all__ = ["queue"]
ASKED = "SLIMSCOPE_TEST_SLURM"
TOLD = ("DATABASE_URL", "DATA_DIR", "CACHE_DIR", "PYTHON")
pytestmark = [
    pytest.mark.skipif(ASKED not in os.environ, reason="takes a Slurm cluster: make test-slurm"),
    pytest.mark.usefixtures("on_server"),
]


@pytest.fixture
def until(queue: Path, monkeypatch: pytest.MonkeyPatch) -> Until:
    """Turns the loop. The variables of the nodes come from here, for want of a profile."""
    told = ",".join(f"SLIMSCOPE_{name}" for name in TOLD)
    for name, value in {
        "ENGINE": "slurm",
        "SLOTS": "2",
        "SLURM_ARGS": f"--export={told}",
        "OFFLINE_S": "120",
        "CACHE_DIR": str(settings().cache_dir),
        "THREADS": "1",
        "PYTHON": f"env PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 {sys.executable}",
    }.items():
        monkeypatch.setenv(f"SLIMSCOPE_{name}", value)
    settings.cache_clear()
    kinds.cache_clear()
    return turning(SupervisorLoop(engine_of(settings())))


def name_of(run: int) -> str:
    return str((queries.attempts(run)[-1].engine_ref or {})["job"])


@pytest.mark.parametrize("kind", SMALL)
def test_a_batch_job_has_the_weights_a_run_has_here(until: Until, kind: str) -> None:
    there = submit(kind, SMALL[kind], HOST).id
    begun = until(lambda: any(a.started_at for a in queries.attempts(there)))
    took = until(is_in(there, State.SUCCEEDED, State.FAILED))
    print(f"{kind}: claimed after {begun:.1f} s, ended after {took:.1f} s more")
    assert queries.job(there).state == State.SUCCEEDED, read_log(queries.job(there).run, 1)[0]
    assert_same_here(there)


def test_a_batch_job_that_is_killed_goes_on_in_the_next(until: Until) -> None:
    run = submit("count", {"steps": 40, "pause": 0.3}, HOST).id
    until(has_done(run, 5))
    run_command(["scancel", "--me", f"--name={name_of(run)}", "--signal=KILL", "--full"])
    took = until(
        lambda: len(queries.attempts(run)) == 2 and bool(queries.attempts(run)[1].started_at)
    )
    print(f"goes on after {took:.1f} s")
    until(is_in(run, State.SUCCEEDED))
    assert_counted(run, 40)


def test_a_batch_job_whose_time_is_over_saves_and_goes_on(until: Until) -> None:
    run = submit("count", {"steps": 40, "pause": 0.3}, HOST).id
    until(has_done(run, 5))
    run_command(["scancel", "--me", f"--name={name_of(run)}", "--signal=USR1", "--batch"])
    until(is_in(run, State.SUCCEEDED))
    first, second = queries.attempts(run)
    assert first.outcome == "stopped" and second.resumed_from
    assert queries.job(run).retries_left == service.RETRIES
    assert_counted(run, 40)


def test_a_batch_job_is_cancelled_once_gently_and_twice_at_once(until: Until) -> None:
    gentle = submit("count", {"steps": 500}, HOST).id
    deaf = submit("count", {"steps": 500, "deaf": True}, HOST).id
    until(lambda: has_done(gentle, 2)() and has_done(deaf, 2)())
    for run in (gentle, deaf, deaf):
        service.cancel([run], HOST)
    took = until(lambda: all(is_in(run, State.CANCELLED)() for run in (gentle, deaf)), 30)
    print(f"cancelled after {took:.1f} s")
    assert queries.attempts(gentle)[0].outcome == "stopped"
