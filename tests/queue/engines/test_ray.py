"""The engine of a Ray cluster; see `test_contract` for what holds for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from backend.queue.engines import engine_of, ray
from backend.queue.engines.ray import RayEngine, RayHead
from backend.queue.launcher import job_environment
from backend.settings import Settings, settings
from tests.conftest import Given
from tests.queue.engines.ray_head import BAD, FIRST, LOST, SECOND, TOKEN, Clock, Head, ray_head
from tests.queue.engines.test_contract import request


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Head, RayEngine]]:
    monkeypatch.setattr(ray, "HEAD_TIMEOUT_S", 30.0)  # of a busy machine
    with ray_head() as (head, address):
        yield head, RayEngine(RayHead(address, TOKEN, clock), 1, 0, 20.0, clock)


@pytest.fixture
def head(cluster: tuple[Head, RayEngine]) -> Head:
    return cluster[0]


@pytest.fixture
def engine(cluster: tuple[Head, RayEngine]) -> RayEngine:
    return cluster[1]


@contextmanager
def silent(head: Head, engine: RayEngine, *requests: str) -> Iterator[None]:
    """Within, these requests get no answer, which is not waited for."""
    head.silence, engine._head._client.timeout = {*requests}, 0.2
    yield
    head.silence, engine._head._client.timeout = set(), 30.0


def later(engine: RayEngine, clock: Clock, ref: dict) -> tuple[str, int | None, str]:
    """What a new poll says."""
    clock.seconds += 10
    engine.room()
    (poll,) = engine.poll([ref])
    return poll.state, poll.code, poll.why


def test_a_launch_says_what_to_run_and_what_it_takes(head: Head, engine: RayEngine) -> None:
    ref = engine.launch(request())
    job = head.jobs[ref["job"]]
    assert job["entrypoint"] == (
        "exec ${SLIMSCOPE_PYTHON:-python} -m jobs.runtime.main --attempt 7"
    )
    assert (job["entrypoint_num_cpus"], job["entrypoint_num_gpus"]) == (1, 0)
    assert job["runtime_env"]["env_vars"] == {"A": "b c", "RAY_JOB_STOP_WAIT_TIME_S": "20"}


@pytest.mark.parametrize(
    ("cpus", "gpus", "places"), [(1, 0, 3), (2, 0, 1), (1, 1, 1), (1, 0.25, 2), (4, 0, 0)]
)
def test_there_is_room_for_as_many_jobs_as_fit_on_one_machine_each(
    head: Head, engine: RayEngine, cpus: float, gpus: float, places: int
) -> None:
    engine._cpus, engine._gpus = cpus, gpus
    assert engine.room().places == places


def test_a_machine_that_is_lost_takes_its_room_and_its_jobs_with_it(
    head: Head, engine: RayEngine, clock: Clock
) -> None:
    ref = engine.launch(request())
    assert later(engine, clock, ref) == ("running", None, "")
    head.kill(SECOND)
    assert later(engine, clock, ref)[0] == "running" and engine.room().places == 2
    head.kill(FIRST)  # of which the head goes on to say that its job runs
    assert later(engine, clock, ref)[0] == "exited" and engine.room().places == 0


def test_the_end_of_a_job_and_its_reason(head: Head, engine: RayEngine, clock: Clock) -> None:
    ref = engine.launch(request())
    for status, code, message, expected in (
        ("PENDING", None, "waits", ("running", None, "")),
        ("SUCCEEDED", 0, "Job finished", ("exited", 0, "")),
        ("FAILED", 3, BAD, ("exited", 3, BAD)),
        ("FAILED", None, LOST, ("exited", None, LOST)),
        ("STOPPED", None, "Job was intentionally stopped.", ("exited", None, "")),
    ):
        head.end(ref["job"], status, code, message)
        assert later(engine, clock, ref) == expected
    with silent(head, engine, f"DELETE /api/jobs/{ref['job']}"):
        kept = dict(head.jobs)
        engine.forget(ref)
    head.jobs |= kept  # Ray writes down how it ended
    clock.seconds += 10
    engine.room()
    assert head.jobs == {} and later(engine, clock, ref) == ("exited", None, "")


def test_a_head_that_is_slow_is_left_alone_for_a_while(
    head: Head, engine: RayEngine, clock: Clock
) -> None:
    ref = engine.launch(request())
    with silent(head, engine, "GET /api/v0/nodes", "GET /api/jobs/"):
        assert later(engine, clock, ref)[0] == "unknown"
        before = len(head.asked)
        for _ in range(10):
            engine.poll([ref]), engine.room(), engine.stop(ref)
        assert len(head.asked) == before
    assert later(engine, clock, ref)[0] == "running" and engine.room().is_reachable
    assert engine.room().places == 3


def test_a_launch_is_not_repeated(head: Head, engine: RayEngine) -> None:
    ref = engine.launch(request())
    assert engine.launch(request()) == ref and len(head.jobs) == 1  # which the head refuses


def test_a_wrong_token_is_no_room(head: Head, engine: RayEngine, clock: Clock) -> None:
    engine._head._client.headers["Authorization"] = "Bearer another"
    assert not engine.room().is_reachable
    assert [poll.state for poll in engine.poll([{"job": "one"}])] == ["unknown"]


def test_all_jobs_are_asked_for_at_once_and_not_too_often(
    head: Head, engine: RayEngine, clock: Clock
) -> None:
    refs = [engine.launch(request(number)) for number in range(5)]
    head.asked.clear()
    for _ in range(4):  # turns of a second
        engine.room(), engine.poll(refs)
        clock.seconds += 0.2
    assert head.asked == ["GET /api/v0/nodes", "GET /api/jobs/"]
    for _ in range(4):
        engine.stop(refs[0])
    assert len(head.asked) == 3 and head.jobs[refs[0]["job"]]["status"] == "STOPPED"


def test_a_cluster_needs_a_server_and_a_token(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.setenv("SLIMSCOPE_ENGINE", "ray")
    monkeypatch.setenv("SLIMSCOPE_DATABASE_URL", "sqlite:////here/results.db")
    with pytest.raises(ValidationError, match="database server"):
        Settings()
    monkeypatch.setenv("SLIMSCOPE_DATABASE_URL", "postgresql+psycopg://db.lab.org/slimscope")
    with pytest.raises(ValidationError, match="token of the Ray cluster"):
        Settings()
    given(RAY_TOKEN=TOKEN)
    assert isinstance(engine_of(settings()), RayEngine)
    assert TOKEN not in job_environment({}, {})[0].values()
