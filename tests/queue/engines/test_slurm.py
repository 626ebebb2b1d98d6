"""The engine of a Slurm cluster; see `test_contract` for what holds for all."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from backend.queue.engines import engine_of, slurm
from backend.queue.engines.slurm import COMMAND_TIMEOUT_S, SlurmEngine, SlurmError, run_command
from backend.settings import settings
from tests.conftest import Given
from tests.queue.engines.ray_head import Clock
from tests.queue.engines.slurm_commands import STATES, Slurm
from tests.queue.engines.test_contract import request


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm()
    monkeypatch.setattr(slurm, "run_command", cluster.run)
    return cluster


@pytest.fixture
def engine(cluster: Slurm) -> SlurmEngine:
    return SlurmEngine(2, 1.5, 1, ["--partition=gpu"], Clock())


def test_a_batch_job_says_what_it_runs_and_takes(cluster: Slurm, engine: SlurmEngine) -> None:
    engine.launch(request())
    line, script = cluster.ran[-1]
    assert {
        "--job-name=slimscope-7-01234567",
        "--cpus-per-task=2",
        "--gres=gpu:1",
        "--partition=gpu",
        "--no-requeue",
        "--signal=B:USR1@120",
        "--export=NONE",
    } <= {*line}
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


def test_a_controller_that_did_not_answer_is_not_asked_again_at_once(
    cluster: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = SlurmEngine(2, 1, 0, [], clock)

    def hang(line: Sequence[str], given: str = "") -> str:
        clock.seconds += COMMAND_TIMEOUT_S
        return cluster.run(line, given)

    monkeypatch.setattr(slurm, "run_command", hang)
    cluster.fails = {"squeue"}
    assert not engine.room().is_reachable
    cluster.fails = set()
    assert not engine.room().is_reachable and len(cluster.ran) == 1


def test_a_stop_is_for_the_process_and_a_kill_for_all(cluster: Slurm, engine: SlurmEngine) -> None:
    ref = engine.launch(request())
    cluster.ran.clear()
    for _ in range(3):  # turns of a second
        engine.stop(ref)
        engine.kill(ref)
    assert [line for line, _ in cluster.ran] == [
        ["scancel", "--me", "--name=slimscope-7-01234567", "--batch", "--signal=TERM"],
        ["scancel", "--me", "--name=slimscope-7-01234567"],
    ]


def test_a_command_that_fails_or_hangs_is_one_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_command(["cat"], "given") == "given"
    monkeypatch.setattr(slurm, "COMMAND_TIMEOUT_S", 0.1)
    for line in (["false"], ["sleep", "5"], ["no-such-command-of-slurm"]):
        with pytest.raises(SlurmError, match=line[0]):
            run_command(line)


def test_the_arguments_of_the_site(data_dir: Path, given: Given) -> None:
    given(ENGINE="slurm", SLURM_ARGS="--partition=gpu --comment='two words'")
    given(DATABASE_URL="postgresql+psycopg://db.lab.org/slimscope")
    engine = engine_of(settings())
    assert isinstance(engine, SlurmEngine)
    assert engine._arguments == ["--partition=gpu", "--comment=two words"]
