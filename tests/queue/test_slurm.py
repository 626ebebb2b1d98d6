"""The engine of a Slurm cluster, against answers recorded from Slurm 24.11 with two nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from backend.queue import service
from backend.queue.engines import slurm
from backend.queue.engines.base import LaunchRequest
from backend.queue.engines.choose import engine_of
from backend.queue.engines.slurm import SlurmEngine, SlurmError, run_command
from backend.queue.supervisor import NEVER, SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from tests.queue.conftest import HOST

UNSET = {"set": False, "infinite": False, "number": 0}


def number(value: int) -> dict:
    return {"set": True, "infinite": False, "number": value}


def exit_code(status: str, code: dict, signal: dict, name: str = "") -> dict:
    return {"status": [status], "return_code": code, "signal": {"id": signal, "name": name}}


FINE = exit_code("SUCCESS", number(0), UNSET)
STATES = {  # what squeue --json lists -> what becomes of it
    "pending": (["PENDING"], FINE, "Resources", ("running", None)),
    "running": (["RUNNING"], FINE, "None", ("running", None)),
    "completing": (["CANCELLED", "COMPLETING"], FINE, "None", ("running", None)),
    "done": (["COMPLETED"], FINE, "None", ("exited", 0)),
    "bad": (
        ["FAILED"], exit_code("ERROR", number(3), UNSET), "NonZeroExitCode", ("exited", 3),
    ),
    "killed": (
        ["FAILED"], exit_code("SIGNALED", UNSET, number(9), "KILL"), "RaisedSignal",
        ("exited", -9),
    ),
    "cancelled": (
        ["CANCELLED"], exit_code("SIGNALED", UNSET, number(15), "TERM"), "None", ("exited", -15),
    ),
    "lost": (["NODE_FAIL"], FINE, "NodeDown", ("exited", None)),
    "of an older Slurm": ("RUNNING", FINE, "None", ("running", None)),
}  # fmt: skip


class Slurm:
    """What stands for the commands.

    Attributes:
        fails: commands that fail; hides: those that do what they are asked and fail.
        ran: the commands so far, with what they were given.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.fails: set[str] = set()
        self.hides: set[str] = set()
        self.ran: list[tuple[list[str], str]] = []
        self.seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def run(self, line: Sequence[str], given: str = "") -> str:
        self.ran.append(([*line], given))
        if line[0] in self.fails:
            raise SlurmError("slurm_load_jobs error: Unable to contact slurm controller")
        answer = ""
        if line[0] == "squeue":
            answer = json.dumps({"jobs": [*self.jobs.values()]})
        elif line[0] == "sbatch":
            name = next(each for each in line if each.startswith("--job-name=")).partition("=")[2]
            self.list(name, *STATES["running"][:3])
            answer = f"{len(self.jobs)}\n"
        if line[0] in self.hides:
            raise SlurmError(f"{line[0]} does not answer")
        return answer

    def list(self, name: str, state: object, code: dict, reason: str) -> None:
        self.jobs[name] = {
            "name": name, "job_state": state, "exit_code": code, "state_reason": reason,
        }  # fmt: skip


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm()
    monkeypatch.setattr(slurm, "run_command", cluster.run)
    return cluster


@pytest.fixture
def engine(cluster: Slurm) -> SlurmEngine:
    return SlurmEngine(2, 1.5, 1, ["--partition=gpu"], cluster.clock)


def request() -> LaunchRequest:
    argv = ("/here/python", "-m", "jobs.runtime.main", "--attempt", "7")
    return LaunchRequest(7, argv, {"A": "b c"}, "", "", token="0123456789abcdef")


def test_a_batch_job_says_what_to_run_and_what_it_takes(
    cluster: Slurm, engine: SlurmEngine
) -> None:
    assert (
        engine.launch(request()) == engine.reference(request()) == {"job": "slimscope-7-01234567"}
    )
    line, script = cluster.ran[-1]
    assert {
        "--job-name=slimscope-7-01234567", "--cpus-per-task=2", "--gres=gpu:1", "--partition=gpu",
        "--no-requeue", "--signal=B:USR1@120", "--export=NONE",
    } <= {*line}  # fmt: skip
    assert script == (
        "#!/bin/sh -l\nexport A='b c'\n"
        "exec ${SLIMSCOPE_PYTHON:-python} -m jobs.runtime.main --attempt 7\n"
    )


@pytest.mark.parametrize("name", STATES)
def test_what_slurm_says_of_a_job(cluster: Slurm, engine: SlurmEngine, name: str) -> None:
    *listed, expected = STATES[name]
    cluster.list("one", *listed)
    (poll,) = engine.poll([{"job": "one"}])
    assert (poll.state, poll.code) == expected
    assert (listed[2] in poll.why) == (poll.state == "exited" and poll.code != 0)


def test_a_controller_that_does_not_answer_says_nothing(
    cluster: Slurm, engine: SlurmEngine
) -> None:
    ref = engine.launch(request())
    assert engine.room().known and engine.room().places == 2
    cluster.fails = {"squeue"}
    cluster.seconds += 10
    assert engine.poll([ref])[0].state == "unknown" and not engine.room().known
    cluster.fails = set()
    assert engine.poll([ref])[0].state == "unknown"  # it is not asked again at once
    cluster.seconds += 10
    assert engine.poll([ref])[0].state == "running"


def test_a_submission_without_an_answer_is_found_and_a_refused_one_is_told(
    cluster: Slurm, engine: SlurmEngine
) -> None:
    cluster.hides = {"sbatch"}
    ref = engine.launch(request())
    assert engine.poll([ref])[0].state == "running"
    cluster.jobs.clear()
    cluster.fails = {"sbatch"}
    with pytest.raises(SlurmError, match="controller"):
        engine.launch(request())
    assert engine.poll([ref])[0].state == "exited"


def test_a_stop_is_for_the_process_and_a_kill_for_all_of_the_job(
    cluster: Slurm, engine: SlurmEngine
) -> None:
    ref = engine.launch(request())
    cluster.ran.clear()
    for _ in range(3):  # turns of a second
        engine.stop(ref)
        engine.kill(ref)
    assert [line for line, _ in cluster.ran] == [
        ["scancel", "--me", "--name=slimscope-7-01234567", "--batch", "--signal=TERM"],
        ["scancel", "--me", "--name=slimscope-7-01234567"],
    ]


def test_the_loop_on_a_slurm_cluster(queue: Path, cluster: Slurm, engine: SlurmEngine) -> None:
    jobs = [service.enqueue("count", {}, HOST) for _ in range(3)]
    loop = SupervisorLoop(engine)
    loop.turn()
    assert len(cluster.jobs) == 2
    assert [queries.job(job.id).state for job in jobs] == ["starting", "starting", "queued"]
    cluster.fails = {"squeue", "sbatch", "scancel"}
    cluster.seconds += 10
    loop.turn()
    assert queries.job(jobs[0].id).state == State.STARTING
    cluster.fails = set()
    del cluster.jobs[next(iter(cluster.jobs))]  # before it began
    cluster.seconds += 10
    loop.turn()
    assert queries.attempts(jobs[0].id)[0].outcome == NEVER


def test_a_command_that_fails_hangs_or_is_missing_is_one_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_command(["cat"], "given") == "given"
    monkeypatch.setattr(slurm, "ANSWER_S", 0.1)
    for line in (["false"], ["sleep", "5"], ["no-such-command-of-slurm"]):
        with pytest.raises(SlurmError, match=line[0]):
            run_command(line)


def test_the_arguments_of_the_site(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSCOPE_DATABASE_URL", "postgresql+psycopg://db.lab.org/slimscope")
    monkeypatch.setenv("SLIMSCOPE_ENGINE", "slurm")
    monkeypatch.setenv("SLIMSCOPE_SLURM_ARGS", "--partition=gpu --comment='two words'")
    settings.cache_clear()
    engine = engine_of(settings())
    assert isinstance(engine, SlurmEngine)
    assert engine._arguments == ["--partition=gpu", "--comment=two words"]
