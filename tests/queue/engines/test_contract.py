"""The contract of engines that other machines work for: a launch is never lost and never repeated,
and a cluster that does not answer says nothing of its jobs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backend.queue import service
from backend.queue.engines import ray, slurm
from backend.queue.engines.base import Engine, LaunchRequest
from backend.queue.engines.ray import RayEngine, RayHead
from backend.queue.engines.slurm import SlurmEngine
from backend.queue.supervisor import NEVER, SupervisorLoop
from backend.store import queries
from backend.store.states import State
from jobs.runtime.context import claim
from tests.queue.conftest import HOST
from tests.queue.engines.ray_head import TOKEN, Clock, Head, ray_head
from tests.queue.engines.slurm_commands import Slurm

EVERYTHING = ("squeue", "sbatch", "scancel")
REF = {"job": "slimscope-7-01234567"}


def request(number: int = 7) -> LaunchRequest:
    argv = ("/here/python", "-m", "jobs.runtime.main", "--attempt", str(number))
    return LaunchRequest(number, argv, {"A": "b c"}, "", "", token="0123456789abcdef")


@dataclass
class Cluster:
    """An engine, and the cluster that a test does something to.

    Attributes:
        served: what stands for the cluster, whose `jobs` are those it has.
    """

    engine: Engine
    served: Head | Slurm
    clock: Clock

    def later(self) -> tuple[str, int | None]:
        """What a new poll says of the launch."""
        self.clock.seconds += 10
        self.engine.room()
        (poll,) = self.engine.poll([REF])
        return poll.state, poll.code

    def fail(self, *commands: str) -> None:
        """Refuse these commands of Slurm, or everything; nothing any more without any."""
        if isinstance(self.served, Head):
            self.served.fails = 503 if commands else 0
        else:
            self.served.fails = {*commands}

    def launch_unanswered(self) -> None:
        """Launch; it is carried out, but the answer is lost."""
        if isinstance(self.served, Head):
            assert isinstance(self.engine, RayEngine)
            self.served.silence, self.engine._head._client.timeout = {"POST /api/jobs/"}, 0.2
            self.engine.launch(request())
            self.served.silence, self.engine._head._client.timeout = set(), 30.0
        else:
            self.served.hides = {"sbatch"}
            self.engine.launch(request())
            self.served.hides = set()


@pytest.fixture(params=["ray", "slurm"])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    clock = Clock()
    if request.param == "slurm":
        commands = Slurm()
        monkeypatch.setattr(slurm, "run_command", commands.run)
        yield Cluster(SlurmEngine(2, 1.0, 0, clock=clock), commands, clock)
        return
    monkeypatch.setattr(ray, "HEAD_TIMEOUT_S", 30.0)  # of a busy machine
    with ray_head() as (head, address):
        yield Cluster(RayEngine(RayHead(address, TOKEN, clock), 1, 0, 20.0, clock), head, clock)


def test_a_launch_is_known_by_a_name_that_is_known_before(cluster: Cluster) -> None:
    assert cluster.engine.reference(request()) == REF and cluster.engine.remote
    assert cluster.engine.launch(request()) == REF and [*cluster.served.jobs] == [REF["job"]]
    assert cluster.later() == ("running", None)


def test_a_launch_that_was_accepted_but_not_answered_is_found(cluster: Cluster) -> None:
    cluster.launch_unanswered()
    assert cluster.later() == ("running", None) and len(cluster.served.jobs) == 1


def test_a_launch_that_did_not_get_through_is_told_and_not_there(cluster: Cluster) -> None:
    cluster.fail("sbatch")
    with pytest.raises(OSError, match=r"refused|controller"):
        cluster.engine.launch(request())
    cluster.fail()
    assert cluster.later() == ("exited", None)


def test_a_cluster_that_fails_says_nothing_of_its_jobs(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    places = cluster.engine.room().places
    assert cluster.engine.room().is_reachable
    cluster.fail(*EVERYTHING)
    assert cluster.later()[0] == "unknown" and not cluster.engine.room().is_reachable
    cluster.fail()
    assert cluster.later()[0] == "running"
    assert cluster.engine.room().is_reachable and cluster.engine.room().places == places


def test_a_job_that_is_gone_has_ended(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    cluster.served.jobs.clear()
    assert cluster.later() == ("exited", None)
    cluster.engine.stop(REF), cluster.engine.kill(REF), cluster.engine.forget(REF)


def test_the_loop_on_a_cluster(queue: Path, cluster: Cluster) -> None:
    """A run that claims its attempt, one that does not, a cluster that is away and comes back
    empty."""
    places = cluster.engine.room().places
    jobs = [service.enqueue("count", {}, HOST) for _ in range(places + 1)]
    loop = SupervisorLoop(cluster.engine)
    loop.turn()
    assert len(cluster.served.jobs) == places
    states = [queries.job(job.id).state for job in jobs]
    assert states == ["starting"] * places + ["queued"]
    (attempt,) = queries.attempts(jobs[0].id)
    context = claim(attempt.id)
    cluster.clock.seconds += 10
    loop.turn()
    assert queries.job(jobs[0].id).state == State.RUNNING
    cluster.served.jobs.clear()
    cluster.fail(*EVERYTHING)
    cluster.clock.seconds += 10
    loop.turn()
    assert queries.job(jobs[0].id).state == State.RUNNING  # nothing is known
    cluster.fail()
    cluster.clock.seconds += 10
    loop.turn()
    begun, other = (queries.job(job.id) for job in jobs[:2])
    assert begun.state in (State.QUEUED, State.STARTING) and context.resumed_from is None
    assert (begun.retries_left, other.retries_left) == (service.RETRIES - 1, service.RETRIES)
    assert [queries.attempts(job.id)[0].outcome for job in jobs[:2]] == [None, NEVER]
