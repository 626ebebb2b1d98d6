"""Runs on a real Ray cluster, with a real PostgreSQL: `make test-ray`. Not part of `make test`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.checkpoints import is_whole
from backend.queue import service
from backend.queue.artifacts import read_log
from backend.queue.engines import engine_of
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
from tests.jobs.kinds.test_evaluation import TINY
from tests.queue.conftest import HOST, queue

__all__ = ["queue"]
ASKED = "SLIMSCOPE_TEST_RAY"
pytestmark = [
    pytest.mark.skipif(ASKED not in os.environ, reason="takes a Ray cluster: make test-ray"),
    pytest.mark.usefixtures("on_server"),
]


@pytest.fixture
def apart(request: pytest.FixtureRequest, queue: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the machines: that of the dashboard; or, where a test asks for a store,
    another one."""
    if not getattr(request, "param", False):
        return settings().root
    monkeypatch.setenv("SLIMSCOPE_ARTIFACTS", f"file://{queue.parent}/store")
    settings.cache_clear()
    return queue.parent / "node"


@pytest.fixture
def cluster(queue: Path, apart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A head and two machines. What they know of the database is in their own environment."""
    here = settings()
    folder = Path(tempfile.mkdtemp(prefix="sr-"))
    told = {
        "SLIMSCOPE_PYTHON": f"env PYTHONPATH={ROOT} {sys.executable}",
        "SLIMSCOPE_DATABASE_URL": here.database_url,
        "SLIMSCOPE_DATA_DIR": str(apart),
        "SLIMSCOPE_ARTIFACTS": here.artifact_place,
        "SLIMSCOPE_CACHE_DIR": str(here.cache_dir),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    made = RayCluster(folder, told)
    try:
        made.start_head()
        made.start_node(1), made.start_node(2)
        monkeypatch.setenv("SLIMSCOPE_ENGINE", "ray")
        monkeypatch.setenv("SLIMSCOPE_RAY_ADDRESS", made.address)
        monkeypatch.setenv("SLIMSCOPE_RAY_TOKEN", made.token)
        monkeypatch.setenv("SLIMSCOPE_OFFLINE_S", "120")
        monkeypatch.setenv("SLIMSCOPE_THREADS", "1")  # weights depend on their number
        settings.cache_clear()
        kinds.cache_clear()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def until(cluster: RayCluster) -> Until:
    return turning(SupervisorLoop(engine_of(settings())))


def node_of(cluster: RayCluster, run: int) -> str:
    """The number of the machine that a run is on."""
    ref = queries.attempts(run)[-1].engine_ref or {}
    job = cluster.head.jobs()[ref["job"]]
    (ip,) = [n["node_ip"] for n in cluster.head.nodes() if n["node_id"] == job["driver_node_id"]]
    return str(ip).rpartition(".")[2]


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_on_a_node_has_the_weights_it_has_here(
    until: Until, cluster: RayCluster, kind: str
) -> None:
    there = submit(kind, SMALL[kind], HOST).id
    begun = until(lambda: any(a.started_at for a in queries.attempts(there)))
    took = until(is_in(there, State.SUCCEEDED, State.FAILED))
    print(f"{kind}: claimed after {begun:.1f} s, ended after {took:.1f} s more")
    assert queries.job(there).state == State.SUCCEEDED, read_log(queries.job(there).run, 1)[0]
    assert "attempt 1" in read_log(queries.job(there).run, 1)[0]
    until(lambda: cluster.head.jobs() == {}, 30)  # nothing is left behind
    assert_same_here(there)


@pytest.mark.parametrize("apart", [True], indirect=True)
def test_machines_and_dashboard_need_share_nothing_but_a_store(
    until: Until, cluster: RayCluster, apart: Path
) -> None:
    first = submit("sds", SMALL["sds"], HOST)
    until(is_in(first.id, State.SUCCEEDED, State.FAILED))
    assert queries.job(first.id).state == State.SUCCEEDED
    folder = settings().artifacts / first.run
    until(lambda: not (apart / "artifacts" / first.run).exists(), 30)
    assert not folder.exists()
    measure_ended()
    assert is_whole(folder / "model") and "attempt 1" in read_log(first.run, 1)[0]
    then = submit("evaluation", {"model": first.run, **TINY}, HOST)  # of a model that is fetched
    until(is_in(then.id, State.SUCCEEDED, State.FAILED))
    assert queries.job(then.id).state == State.SUCCEEDED, queries.job(then.id).error
    assert is_whole(apart / "artifacts" / first.run / "model")


def test_a_run_goes_on_elsewhere_when_its_machine_is_lost(
    until: Until, cluster: RayCluster
) -> None:
    run = submit("count", {"steps": 60, "pause": 0.3}, HOST).id
    until(has_done(run, 10))
    lost = node_of(cluster, run)
    cluster.lose(lost)
    ended = until(lambda: queries.attempts(run)[0].ended_at is not None, 60)
    again = until(
        lambda: len(queries.attempts(run)) == 2 and bool(queries.attempts(run)[1].started_at), 60
    )
    print(f"noticed after {ended:.1f} s, goes on {again:.1f} s later")
    assert ended + again < 60
    until(is_in(run, State.SUCCEEDED))
    assert queries.attempts(run)[1].resumed_from
    assert "Continuing from checkpoint" in read_log(queries.job(run).run, 2)[0]
    assert_counted(run, 60)


def test_a_run_that_ends_while_the_head_is_lost_has_ended(
    until: Until, cluster: RayCluster
) -> None:
    run = submit("count", {"steps": 40, "pause": 0.3}, HOST).id
    until(has_done(run, 5))
    cluster.lose("head")
    state = queries.job(run).state
    until(has_done(run, 15))
    assert queries.job(run).state == state
    took = until(is_in(run, State.SUCCEEDED, State.QUEUED, State.LOST))
    print(f"{queries.job(run).state} {took:.1f} s after step 15")
    assert queries.job(run).state == State.SUCCEEDED and len(queries.attempts(run)) == 1
    assert_counted(run, 40)


def test_a_head_that_comes_back_empty_is_given_its_runs_again(
    until: Until, cluster: RayCluster
) -> None:
    run = submit("count", {"steps": 150, "pause": 0.3}, HOST).id
    until(has_done(run, 5))
    cluster.lose("head")
    until(has_done(run, 12))
    assert queries.job(run).state == State.RUNNING
    for name in [*cluster.sessions]:  # else Ray does not start another head on this machine
        cluster.lose(name)
    cluster.start_head()  # which knows no job, and none of the machines there were
    cluster.start_node(3), cluster.start_node(4)
    again = until(
        lambda: len(queries.attempts(run)) == 2 and bool(queries.attempts(run)[1].started_at)
    )
    print(f"goes on {again:.1f} s after the new head answers")
    until(is_in(run, State.SUCCEEDED))
    assert_counted(run, 150)


def test_cancelling_twice_ends_a_deaf_run_at_once(until: Until, cluster: RayCluster) -> None:
    run = submit("count", {"steps": 500, "pause": 0.3, "deaf": True}, HOST).id
    until(has_done(run, 2))
    service.cancel([run], HOST)
    service.cancel([run], HOST)
    took = until(is_in(run, State.CANCELLED), 30)
    print(f"cancelled after {took:.1f} s")
