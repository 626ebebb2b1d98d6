"""The engines of clusters, Ray and Slurm: a launch is never lost and never repeated, and a cluster
that does not answer says nothing of its jobs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backend.queue import service
from backend.queue.engines import engine_of, ray, slurm
from backend.queue.engines.base import LaunchRequest
from backend.queue.engines.ray import RayEngine, RayHead
from backend.queue.engines.slurm import COMMAND_TIMEOUT_S, SlurmEngine, SlurmError, run_command
from backend.queue.launcher import job_environment
from backend.queue.supervisor import NEVER, SupervisorLoop
from backend.settings import Settings, settings
from backend.store import queries
from backend.store.states import State
from jobs.runtime.context import claim
from tests.conftest import Given
from tests.queue.conftest import HOST
from tests.queue.engines.ray_head import BAD, FIRST, LOST, SECOND, TOKEN, Clock, Head, ray_head
from tests.queue.engines.slurm_commands import STATES, Slurm

EVERYTHING = ("squeue", "sbatch", "scancel")
REF = {"job": "slimscope-7-01234567"}
SERVER = "postgresql+psycopg://db.lab.org/slimscope"


def request(number: int = 7) -> LaunchRequest:
    argv = ("/here/python", "-m", "jobs.runtime.main", "--attempt", str(number))
    return LaunchRequest(number, argv, {"A": "b c"}, "", "", token="0123456789abcdef")


@dataclass
class Cluster:
    """An engine, and the cluster that a test does something to.

    Attributes:
        engine: a `RayEngine` or a `SlurmEngine`.
        served: what stands for the cluster, whose `jobs` are those it has.
    """

    engine: Any
    served: Any
    clock: Clock

    def later(self) -> tuple[str, int | None, str]:
        """What a new poll says of the launch."""
        self.clock.seconds += 10
        self.engine.room()
        (poll,) = self.engine.poll([REF])
        return poll.state, poll.code, poll.why

    def fail(self, *commands: str) -> None:
        """Refuse these commands of Slurm, or everything; nothing any more without any."""
        if isinstance(self.served, Head):
            self.served.fails = 503 if commands else 0
        else:
            self.served.fails = {*commands}

    @contextmanager
    def unanswered(self, *requests: str) -> Iterator[None]:
        """Within, these requests are carried out, but get no answer, which is not waited for."""
        if isinstance(self.served, Slurm):
            self.served.hides = {*requests}
            yield
            self.served.hides = set()
        else:
            self.served.silence, self.engine._head._client.timeout = {*requests}, 0.2
            yield
            self.served.silence, self.engine._head._client.timeout = set(), 30.0


@pytest.fixture(params=["ray", "slurm"])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    clock = Clock()
    if request.param == "slurm":
        commands = Slurm()
        monkeypatch.setattr(slurm, "run_command", commands.run)
        yield Cluster(SlurmEngine(2, 1.0, 0, ["--partition=gpu"], clock), commands, clock)
        return
    monkeypatch.setattr(ray, "HEAD_TIMEOUT_S", 30.0)  # of a busy machine
    with ray_head() as (head, address):
        yield Cluster(RayEngine(RayHead(address, TOKEN, clock), 1, 0, 20.0, clock), head, clock)


ON_RAY = pytest.mark.parametrize("cluster", ["ray"], indirect=True)
ON_SLURM = pytest.mark.parametrize("cluster", ["slurm"], indirect=True)


def test_a_launch_is_known_by_a_name_that_is_known_before(cluster: Cluster) -> None:
    assert cluster.engine.reference(request()) == REF and cluster.engine.remote
    assert cluster.engine.launch(request()) == REF and [*cluster.served.jobs] == [REF["job"]]
    assert cluster.later()[0] == "running"
    cluster.served.jobs.clear()
    assert cluster.later() == ("exited", None, "")
    cluster.engine.stop(REF), cluster.engine.kill(REF), cluster.engine.forget(REF)


def test_a_launch_that_was_accepted_but_not_answered_is_found(cluster: Cluster) -> None:
    with cluster.unanswered("POST /api/jobs/", "sbatch"):
        cluster.engine.launch(request())
    assert cluster.later()[0] == "running" and len(cluster.served.jobs) == 1


def test_a_launch_that_did_not_get_through_is_told_and_not_there(cluster: Cluster) -> None:
    cluster.fail("sbatch")
    with pytest.raises(OSError, match=r"refused|controller"):
        cluster.engine.launch(request())
    cluster.fail()
    assert cluster.later() == ("exited", None, "")


def test_a_cluster_that_fails_says_nothing_of_its_jobs(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    places = cluster.engine.room().places
    assert cluster.engine.room().is_reachable
    cluster.fail(*EVERYTHING)
    assert cluster.later()[0] == "unknown" and not cluster.engine.room().is_reachable
    cluster.fail()
    assert cluster.later()[0] == "running"
    assert cluster.engine.room().is_reachable and cluster.engine.room().places == places


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


# Ray ----------------------------------------------------------------------------------------------


@ON_RAY
def test_a_launch_on_ray_says_what_to_run_and_is_not_repeated(cluster: Cluster) -> None:
    for _ in range(2):  # the second is refused by the head
        assert cluster.engine.launch(request()) == REF
    (job,) = cluster.served.jobs.values()
    line = "exec ${SLIMSCOPE_PYTHON:-python} -m jobs.runtime.main --attempt 7"
    assert job["entrypoint"] == line
    assert (job["entrypoint_num_cpus"], job["entrypoint_num_gpus"]) == (1, 0)
    assert job["runtime_env"]["env_vars"] == {"A": "b c", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


@ON_RAY
@pytest.mark.parametrize(
    ("cpus", "gpus", "places"), [(1, 0, 3), (2, 0, 1), (1, 1, 1), (1, 0.25, 2), (4, 0, 0)]
)
def test_there_is_room_for_as_many_jobs_as_fit_on_one_machine_each(
    cluster: Cluster, cpus: float, gpus: float, places: int
) -> None:
    cluster.engine._cpus, cluster.engine._gpus = cpus, gpus
    assert cluster.engine.room().places == places


@ON_RAY
def test_a_machine_that_is_lost_takes_its_room_and_its_jobs_with_it(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    assert cluster.later() == ("running", None, "")
    cluster.served.kill(SECOND)
    assert cluster.later()[0] == "running" and cluster.engine.room().places == 2
    cluster.served.kill(FIRST)  # of which the head goes on to say that its job runs
    assert cluster.later()[0] == "exited" and cluster.engine.room().places == 0


@ON_RAY
def test_the_end_of_a_job_on_ray_and_its_reason(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    for status, code, message, expected in (
        ("PENDING", None, "waits", ("running", None, "")),
        ("SUCCEEDED", 0, "Job finished", ("exited", 0, "")),
        ("FAILED", 3, BAD, ("exited", 3, BAD)),
        ("FAILED", None, LOST, ("exited", None, LOST)),
        ("STOPPED", None, "Job was intentionally stopped.", ("exited", None, "")),
    ):
        cluster.served.end(REF["job"], status, code, message)
        assert cluster.later() == expected
    with cluster.unanswered(f"DELETE /api/jobs/{REF['job']}"):
        kept = dict(cluster.served.jobs)
        cluster.engine.forget(REF)
    cluster.served.jobs |= kept  # Ray writes down how it ended
    assert cluster.later() == ("exited", None, "") and cluster.served.jobs == {}


@ON_RAY
def test_a_head_that_is_slow_is_left_alone_for_a_while(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    with cluster.unanswered("GET /api/v0/nodes", "GET /api/jobs/"):
        assert cluster.later()[0] == "unknown"
        before = len(cluster.served.asked)
        for _ in range(10):
            cluster.engine.poll([REF]), cluster.engine.room(), cluster.engine.stop(REF)
        assert len(cluster.served.asked) == before
    assert cluster.later()[0] == "running" and cluster.engine.room().places == 3


@ON_RAY
def test_a_wrong_token_is_no_room(cluster: Cluster) -> None:
    cluster.engine._head._client.headers["Authorization"] = "Bearer another"
    assert not cluster.engine.room().is_reachable
    assert cluster.engine.poll([REF])[0].state == "unknown"


@ON_RAY
def test_all_jobs_are_asked_for_at_once_and_not_too_often(cluster: Cluster) -> None:
    engine, head = cluster.engine, cluster.served
    refs = [engine.launch(request(number)) for number in range(5)]
    head.asked.clear()
    for _ in range(4):  # turns of a second
        engine.room(), engine.poll(refs)
        cluster.clock.seconds += 0.2
    assert head.asked == ["GET /api/v0/nodes", "GET /api/jobs/"]
    for _ in range(4):
        engine.stop(refs[0])
    assert len(head.asked) == 3 and head.jobs[refs[0]["job"]]["status"] == "STOPPED"


def test_a_cluster_of_ray_needs_a_server_and_a_token(data_dir: Path, given: Given) -> None:
    given(ENGINE="ray", DATABASE_URL="sqlite:////here/results.db")
    with pytest.raises(ValidationError, match="database server"):
        Settings()
    given(DATABASE_URL=SERVER)
    with pytest.raises(ValidationError, match="token of the Ray cluster"):
        Settings()
    given(RAY_TOKEN=TOKEN)
    assert isinstance(engine_of(settings()), RayEngine)
    assert TOKEN not in job_environment({}, {})[0].values()


# Slurm --------------------------------------------------------------------------------------------


@ON_SLURM
def test_a_batch_job_says_what_it_runs_and_takes(cluster: Cluster) -> None:
    SlurmEngine(2, 1.5, 1, ["--partition=gpu"], cluster.clock).launch(request())
    line, script = cluster.served.ran[-1]
    options = "job-name=slimscope-7-01234567 cpus-per-task=2 gres=gpu:1 partition=gpu no-requeue"
    asked = {f"--{option}" for option in options.split()}
    assert asked | {"--signal=B:USR1@120", "--export=NONE"} <= {*line}
    assert script == (
        "#!/bin/sh -l\nexport A='b c'\n"
        "exec ${SLIMSCOPE_PYTHON:-python} -m jobs.runtime.main --attempt 7\n"
    )


@ON_SLURM
@pytest.mark.parametrize("name", STATES)
def test_what_slurm_says_of_a_job(cluster: Cluster, name: str) -> None:
    *listed, expected = STATES[name]
    cluster.served.list(REF["job"], *listed)
    state, code, why = cluster.later()
    assert (state, code) == expected
    assert (listed[2] in why) == (state == "exited" and code != 0)


@ON_SLURM
def test_a_controller_that_did_not_answer_is_not_asked_again_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(line: Sequence[str], given: str = "") -> str:
        cluster.clock.seconds += COMMAND_TIMEOUT_S
        return cluster.served.run(line, given)

    monkeypatch.setattr(slurm, "run_command", hang)
    cluster.fail("squeue")
    assert not cluster.engine.room().is_reachable
    cluster.fail()
    assert not cluster.engine.room().is_reachable and len(cluster.served.ran) == 1


@ON_SLURM
def test_a_stop_is_for_the_process_and_a_kill_for_all(cluster: Cluster) -> None:
    cluster.engine.launch(request())
    cluster.served.ran.clear()
    for _ in range(3):  # turns of a second
        cluster.engine.stop(REF), cluster.engine.kill(REF)
    cancelled = ["scancel", "--me", f"--name={REF['job']}"]
    assert [line for line, _ in cluster.served.ran] == [
        [*cancelled, "--batch", "--signal=TERM"],
        cancelled,
    ]


def test_a_command_that_fails_or_hangs_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_command(["cat"], "given") == "given"
    monkeypatch.setattr(slurm, "COMMAND_TIMEOUT_S", 0.1)
    for line in (["false"], ["sleep", "5"], ["no-such-command-of-slurm"]):
        with pytest.raises(SlurmError, match=line[0]):
            run_command(line)


def test_the_arguments_of_the_site(data_dir: Path, given: Given) -> None:
    given(ENGINE="slurm", SLURM_ARGS="--partition=gpu --comment='two words'", DATABASE_URL=SERVER)
    engine = engine_of(settings())
    assert isinstance(engine, SlurmEngine)
    assert engine._arguments == ["--partition=gpu", "--comment=two words"]
