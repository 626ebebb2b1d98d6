"""The process that is there before its run: it does what one started for the run does, never where
it does not fit, and its death at any moment loses nothing and repeats nothing."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import ForbiddenError
from backend.queue import service
from backend.queue.actor import Actor
from backend.queue.artifacts import read_log
from backend.queue.engines import local
from backend.queue.engines.base import LaunchRequest, Ref
from backend.queue.engines.local import LocalEngine, reference
from backend.queue.launcher import SUPERVISOR, spare_request
from backend.queue.service import ESTIMATED_SECONDS
from backend.queue.supervisor import SPARE_LEAD_S, SupervisorLoop
from backend.store import queries
from backend.store.states import Exit, State
from backend.store.tables import Job
from jobs.submit import check_and_estimate, submit
from tests.faults.test_checkpoints import assert_same
from tests.fork_engine import ForkedSpare, ForkEngine
from tests.jobs.kinds import test_sds
from tests.queue.conftest import HOST, Wait, change, curve, process_of
from tests.waiting import until

SAYS = "import os, sys; print(sys.stdin.readline(), os.environ.get('CUDA_VISIBLE_DEVICES'))"


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(1)
    yield made
    made.prepare(None, start=False)


@pytest.fixture
def request_of(tmp_path: Path) -> LaunchRequest:
    """Of a process that prints what it is told, and no more."""
    argv = (sys.executable, "-c", SAYS, "--attempt", "7")
    return LaunchRequest(7, argv, {"A": "b"}, str(tmp_path / "a1" / "log"), str(tmp_path))


def waiting(launch: LaunchRequest) -> LaunchRequest:
    return replace(launch, attempt_id=0, argv=(*launch.argv[:3], "--spare"), log="")


def launched(engine: LocalEngine, launch: LaunchRequest) -> tuple[int, str]:
    """The process that carries out a launch, and what it has printed."""
    ref = engine.launch(launch)
    until(lambda: engine.poll([ref])[0].state == "exited")
    return ref["pid"], Path(launch.log).read_text()


def spare_pid(engine: LocalEngine) -> int:
    assert engine._spare is not None
    return engine._spare._child.pid


def kill_spare(engine: LocalEngine) -> None:
    """Kill it, and wait until it is dead: until then it can be told something."""
    assert engine._spare is not None
    engine._spare._child.kill()
    engine._spare._child.wait()


def test_it_is_told_its_attempt_its_log_and_its_gpus(
    engine: LocalEngine, request_of: LaunchRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = replace(request_of, environment={"A": "b", "CUDA_VISIBLE_DEVICES": "3"})
    engine.prepare(waiting(request_of), start=True)
    before = spare_pid(engine)
    assert launched(engine, asked) == (before, "") and engine._spare is None
    told, gpus = capfd.readouterr().out.splitlines()
    assert f'"--attempt", "7", "--log", "{asked.log}"' in told
    assert '{"CUDA_VISIBLE_DEVICES": "3"}' in told and gpus.strip() == "None"  # until it is set


@pytest.mark.parametrize("why", ["environment", "folder", "code", "death"])
def test_where_it_does_not_fit_a_process_is_started_for_the_run(
    engine: LocalEngine, request_of: LaunchRequest, tmp_path: Path, why: str
) -> None:
    (tmp_path / "jobs").mkdir()
    engine.prepare(waiting(request_of), start=True)
    before, asked = spare_pid(engine), request_of
    if why == "environment":
        asked = replace(asked, environment={"A": "c"})
    elif why == "folder":
        asked = replace(asked, folder=str(tmp_path / "jobs"))
    elif why == "code":
        (tmp_path / "jobs" / "new.py").touch()
    else:
        kill_spare(engine)
    pid, printed = launched(engine, asked)
    assert pid != before and printed == " None\n"


def test_there_is_one_where_there_is_memory_and_none_after_its_death(
    engine: LocalEngine, request_of: LaunchRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = waiting(request_of)
    for available, start, is_there in (
        (1e9, True, False),
        (2e9, False, False),
        (2e9, True, True),
        (1e9, False, True),  # it takes some of it itself
        (0.1e9, True, False),
        (2e9, True, True),
    ):
        monkeypatch.setattr(local, "memory_available", lambda available=available: available)
        before = engine._spare
        engine.prepare(mine, start=start)
        assert (engine._spare is not None) == is_there
        assert before is None or engine._spare in (before, None)  # the same one
    kill_spare(engine)
    for _ in range(2):
        engine.prepare(mine, start=True)
    assert engine._spare is None  # it would die again


class Asked(LocalEngine):
    """Remembers what it was to prepare."""

    def prepare(self, launch: LaunchRequest | None, start: bool) -> None:
        self.asked = (launch is not None, launch is not None and start)


def test_it_is_there_for_a_run_that_starts_soon(queue: Path) -> None:
    engine = Asked(1)
    loop = SupervisorLoop(engine)
    assert not loop.prepare() and engine.asked == (False, False)
    service.expect_run(HOST)
    assert loop.prepare() and engine.asked == (True, True)
    first, second = (submit("count", {}, HOST).id for _ in range(2))
    change(Job, first, state=State.RUNNING)
    assert loop.prepare() and engine.asked == (True, False)  # the time that is left is not known
    for left, starts in ((SPARE_LEAD_S + 1, False), (SPARE_LEAD_S - 1, True)):
        change(Job, first, eta_s=left)
        loop.prepare()
        assert engine.asked == (True, starts)
    change(Job, second, environment={"settings": 5})
    loop.prepare()
    assert engine.asked == (False, False)
    assert [queries.job(n).state for n in (first, second)] == [State.RUNNING, State.FAILED]
    assert loop.prepare() and engine.asked == (False, False)  # the slot is taken


def test_who_may_not_add_a_run_wakes_nobody(queue: Path) -> None:
    with pytest.raises(ForbiddenError):
        service.expect_run(Actor("passer-by"))
    assert not SUPERVISOR.is_called()
    service.expect_run(HOST)
    assert [SUPERVISOR.is_called() for _ in range(2)] == [True, False]


class WarmEngine(ForkEngine):
    """Has a spare process, and forks where it does not fit."""

    prepare = LocalEngine.prepare

    def launch(self, launch: LaunchRequest) -> Ref:
        child = self._take_spare(launch, launch.environment)
        if child is None:
            return super().launch(launch)
        self._children[child.pid] = child
        return reference(child.pid)


@pytest.fixture
def loop(queue: Path) -> Iterator[SupervisorLoop]:
    engine = WarmEngine(1)
    yield SupervisorLoop(engine)
    engine.prepare(None, start=False)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare processes are forks."""

    def fork(spare: local.SpareProcess, launch: LaunchRequest) -> None:
        spare._launch, spare._code = launch, local.code_state(launch.folder)
        spare._child = ForkedSpare(launch)

    monkeypatch.setattr(local.SpareProcess, "__init__", fork)


def test_a_run_in_it_leaves_the_record_of_any_other(wait: Wait, loop: SupervisorLoop) -> None:
    """The spare process is started as in production; it takes the memory that was estimated."""
    config = {**test_sds.SMALL, "until": "first", "adjust_steps": 2}
    cold = submit("sds", config, HOST)
    assert wait(cold.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    warm = submit("sds", config, HOST)
    loop.engine.prepare(spare_request(warm), start=True)
    pid = spare_pid(loop.engine)
    assert wait(warm.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert process_pid(warm) == pid != process_pid(cold)
    _, estimate = check_and_estimate("sds", config)
    assert 1e8 < queries.job(warm.id).peak_bytes < 1.2 * estimate.bytes
    assert_same(queries.job(cold.id), queries.job(warm.id))
    assert said_in(queries.job(cold.id)) == said_in(queries.job(warm.id))
    one, other = (queries.job(job.id).environment | {ESTIMATED_SECONDS: 0} for job in (cold, warm))
    assert one == other


def said_in(job: Job) -> list[str]:
    """The lines of its log without times and its own name."""
    lines = read_log(job.run, 1)[0].replace(job.run, "this run").splitlines()
    return [line[8:] for line in lines]


def process_pid(job: Job) -> int:
    ref: Ref = queries.attempts(job.id)[-1].engine_ref or {}
    return int(ref["pid"])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_its_start_the_run_is_carried_out_once(
    forks: None, wait: Wait, loop: SupervisorLoop, moment: str
) -> None:
    job = submit("count", {"steps": 2, "pause": 0}, HOST)
    loop.engine.prepare(spare_request(job), start=True)
    pid = spare_pid(loop.engine)
    os.kill(pid, signal.SIGSTOP)  # so that it reads nothing
    if moment == "before":
        kill_spare(loop.engine)
    else:
        loop.turn()
        assert process_of(job.id).pid == pid
        os.kill(pid, signal.SIGKILL)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert len(queries.attempts(job.id)) == (2 if moment == "after" else 1)
    assert curve(job.id, "count") == [0, 1]


def test_a_supervisor_that_dies_as_it_hands_over_starts_nothing_twice(
    forks: None, wait: Wait, loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process it has told comes before the next supervisor, or is too late."""
    job = submit("count", {"steps": 2, "pause": 0}, HOST)
    loop.engine.prepare(spare_request(job), start=True)
    told = loop.engine._spare._child
    launch = loop.engine.launch

    def power_cut(asked: LaunchRequest) -> None:
        launch(asked)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.engine, "launch", power_cut)
        loop.turn()
    assert wait(job.id, State.SUCCEEDED) == State.SUCCEEDED
    assert told.wait() in (Exit.DONE, Exit.FENCED)
    assert [a.outcome for a in queries.attempts(job.id)].count("succeeded") == 1
    assert curve(job.id, "attempt") in ([1, 1], [2, 2])


@pytest.mark.parametrize("line", [b"", b'{"arguments": ["--attem'])
def test_at_the_end_of_its_input_it_leaves_quietly(queue: Path, line: bytes) -> None:
    """As when its supervisor dies, be it in the middle of what it says."""
    child = ForkedSpare(spare_request(None))
    with child.stdin as channel:
        channel.write(line)
    assert child.wait() == Exit.DONE
