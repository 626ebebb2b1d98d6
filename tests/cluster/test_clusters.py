"""Runs on a real cluster of Ray or Slurm, with a real PostgreSQL that its nodes reach: `make
test-ray`, `make test-slurm`. Not part of `make test`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.checkpoints import is_whole
from backend.queue import service
from backend.queue.artifacts import read_log
from backend.queue.engines import engine_of
from backend.queue.engines.slurm import run_command
from backend.queue.supervisor import SupervisorLoop
from backend.queue.upkeep import measure_ended
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from jobs.kind import kinds
from jobs.submit import submit
from tests.cluster.nodes import ROOT, RayCluster
from tests.cluster.watching import (
    SMALL,
    Until,
    assert_counted,
    assert_same_here,
    has_done,
    is_in,
    turning,
)
from tests.conftest import Given
from tests.jobs.kinds.test_evaluation import TINY
from tests.queue.conftest import HOST, queue

__all__ = ["queue"]
PYTHON = f"env PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 {sys.executable}"
TOLD = ("DATABASE_URL", "DATA_DIR", "CACHE_DIR", "PYTHON")
pytestmark = pytest.mark.usefixtures("on_server")


def require(variable: str, command: str) -> None:
    if variable not in os.environ:
        pytest.skip(f"takes a cluster: {command}")


@pytest.fixture
def apart(request: pytest.FixtureRequest, queue: Path, given: Given) -> Path:
    """The data folder of the machines: that of the dashboard; or, where a test asks for a store,
    another one."""
    if not getattr(request, "param", False):
        return settings().root
    given(ARTIFACTS=f"file://{queue.parent}/store")
    return queue.parent / "node"


@pytest.fixture
def cluster(queue: Path, apart: Path, given: Given) -> Iterator[RayCluster]:
    """A head and two machines of Ray. What they know of the database is in their own
    environment."""
    require("SLIMSCOPE_TEST_RAY", "make test-ray")
    here = settings()
    folder = Path(tempfile.mkdtemp(prefix="sr-"))
    told = {
        "SLIMSCOPE_PYTHON": PYTHON,
        "SLIMSCOPE_DATABASE_URL": here.database_url,
        "SLIMSCOPE_DATA_DIR": str(apart),
        "SLIMSCOPE_ARTIFACTS": here.artifact_place,
        "SLIMSCOPE_CACHE_DIR": str(here.cache_dir),
    }
    made = RayCluster(folder, told)
    try:
        made.start_head()
        made.start_node(1), made.start_node(2)
        given(ENGINE="ray", RAY_ADDRESS=made.address, RAY_TOKEN=made.token)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(queue: Path, given: Given) -> None:
    """The variables of the nodes come from here, for want of a profile."""
    require("SLIMSCOPE_TEST_SLURM", "make test-slurm")
    told = ",".join(f"SLIMSCOPE_{name}" for name in TOLD)
    given(ENGINE="slurm", SLOTS="2", SLURM_ARGS=f"--export={told}", PYTHON=PYTHON)
    given(CACHE_DIR=str(settings().cache_dir))


@dataclass
class Site:
    """A cluster whose supervisor's loop is turned by hand.

    Attributes:
        lose: kills what a run works on, machine or batch job.
    """

    until: Until
    lose: Callable[[int], object]


@pytest.fixture(params=["ray", "slurm"])
def site(request: pytest.FixtureRequest, given: Given) -> Site:
    cluster = request.getfixturevalue("cluster" if request.param == "ray" else "slurm")
    given(OFFLINE_S="120", THREADS="1")  # weights depend on their number
    kinds.cache_clear()
    until = turning(SupervisorLoop(engine_of(settings())))
    return Site(until, lambda run: cluster.lose(node_of(cluster, run)) if cluster else scancel(run))


ON_RAY = pytest.mark.parametrize("site", ["ray"], indirect=True)
ON_SLURM = pytest.mark.parametrize("site", ["slurm"], indirect=True)


def job_of(run: int) -> str:
    """The name of the newest attempt's job on the cluster."""
    return str((queries.attempts(run)[-1].engine_ref or {})["job"])


def node_of(cluster: RayCluster, run: int) -> str:
    """The number of the machine that a run is on."""
    job = cluster.head.jobs()[job_of(run)]
    (ip,) = [n["node_ip"] for n in cluster.head.nodes() if n["node_id"] == job["driver_node_id"]]
    return str(ip).rpartition(".")[2]


def scancel(run: int, *options: str) -> None:
    line = ["scancel", "--me", f"--name={job_of(run)}"]
    run_command([*line, *(options or ("--signal=KILL", "--full"))])


def goes_on(run: int) -> bool:
    attempts = queries.attempts(run)
    return len(attempts) == 2 and bool(attempts[1].started_at)


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_on_a_node_has_the_weights_it_has_here(site: Site, kind: str) -> None:
    there = submit(kind, SMALL[kind], HOST).id
    site.until(lambda: any(a.started_at for a in queries.attempts(there)), what=f"{kind}: claimed")
    site.until(is_in(there, State.SUCCEEDED, State.FAILED), what=f"{kind}: ended")
    assert queries.job(there).state == State.SUCCEEDED, read_log(queries.job(there).run, 1)[0]
    assert "attempt 1" in read_log(queries.job(there).run, 1)[0]
    assert_same_here(there)


def test_a_run_goes_on_elsewhere_when_its_machine_is_lost(site: Site) -> None:
    run = submit("count", {"steps": 60, "pause": 0.3}, HOST).id
    site.until(has_done(run, 10))
    site.lose(run)
    site.until(lambda: queries.attempts(run)[0].ended_at is not None, 60, "noticed")
    site.until(lambda: goes_on(run), 60, "goes on")
    site.until(is_in(run, State.SUCCEEDED))
    assert queries.attempts(run)[1].resumed_from
    assert "Continuing from checkpoint" in read_log(queries.job(run).run, 2)[0]
    assert_counted(run, 60)


def test_cancelling_twice_ends_a_deaf_run_at_once(site: Site) -> None:
    gentle = submit("count", {"steps": 500}, HOST).id
    deaf = submit("count", {"steps": 500, "pause": 0.3, "deaf": True}, HOST).id
    site.until(lambda: has_done(gentle, 2)() and has_done(deaf, 2)())
    for run in (gentle, deaf, deaf):
        service.cancel([run], HOST)
    site.until(lambda: all(is_in(run, State.CANCELLED)() for run in (gentle, deaf)), 30, "gone")
    assert queries.attempts(gentle)[0].outcome == "stopped"


@ON_SLURM
def test_a_batch_job_whose_time_is_over_saves_and_goes_on(site: Site) -> None:
    run = submit("count", {"steps": 40, "pause": 0.3}, HOST).id
    site.until(has_done(run, 5))
    scancel(run, "--signal=USR1", "--batch")
    site.until(is_in(run, State.SUCCEEDED))
    first, second = queries.attempts(run)
    assert first.outcome == "stopped" and second.resumed_from
    assert queries.job(run).retries_left == service.RETRIES
    assert_counted(run, 40)


@ON_RAY
@pytest.mark.parametrize("apart", [True], indirect=True)
def test_machines_and_dashboard_need_share_nothing_but_a_store(
    site: Site, cluster: RayCluster, apart: Path
) -> None:
    first = submit("sds", SMALL["sds"], HOST)
    site.until(is_in(first.id, State.SUCCEEDED, State.FAILED))
    assert queries.job(first.id).state == State.SUCCEEDED
    site.until(lambda: cluster.head.jobs() == {}, 30)  # nothing is left behind
    folder = settings().artifacts / first.run
    site.until(lambda: not (apart / "artifacts" / first.run).exists(), 30)
    assert not folder.exists()
    measure_ended()
    assert is_whole(folder / "model") and "attempt 1" in read_log(first.run, 1)[0]
    then = submit("evaluation", {"model": first.run, **TINY}, HOST)  # of a model that is fetched
    site.until(is_in(then.id, State.SUCCEEDED, State.FAILED))
    assert queries.job(then.id).state == State.SUCCEEDED, queries.job(then.id).error
    assert is_whole(apart / "artifacts" / first.run / "model")


@ON_RAY
def test_a_run_that_ends_while_the_head_is_lost_has_ended(site: Site, cluster: RayCluster) -> None:
    run = submit("count", {"steps": 40, "pause": 0.3}, HOST).id
    site.until(has_done(run, 5))
    cluster.lose("head")
    state = queries.job(run).state
    site.until(has_done(run, 15))
    assert queries.job(run).state == state
    site.until(is_in(run, State.SUCCEEDED, State.QUEUED, State.LOST), what="ended after step 15")
    assert queries.job(run).state == State.SUCCEEDED and len(queries.attempts(run)) == 1
    assert_counted(run, 40)


@ON_RAY
def test_a_head_that_comes_back_empty_is_given_its_runs_again(
    site: Site, cluster: RayCluster
) -> None:
    run = submit("count", {"steps": 150, "pause": 0.3}, HOST).id
    site.until(has_done(run, 5))
    cluster.lose("head")
    site.until(has_done(run, 12))
    assert queries.job(run).state == State.RUNNING
    for name in [*cluster.sessions]:  # else Ray does not start another head on this machine
        cluster.lose(name)
    cluster.start_head()  # which knows no job, and none of the machines there were
    cluster.start_node(3), cluster.start_node(4)
    site.until(lambda: goes_on(run), what="the new head answers, and the run goes on")
    site.until(is_in(run, State.SUCCEEDED))
    assert_counted(run, 150)
