"""The playground's process: it takes answers, ends when idle, and may be killed at any moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from backend.queue import service
from backend.queue.engines.local import LocalEngine
from backend.queue.launcher import PLAYGROUND
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.generate import run as generation
from jobs.generate.transcript import read_transcript
from jobs.playground import main
from jobs.submit import submit
from tests.fork_server import FORKS, begin_anew
from tests.jobs.kinds.test_generate import SMALL
from tests.queue.conftest import HOST
from tests.waiting import until

PATIENCE_S = 60
TOKEN_S = 0.02  # of a slow answer


def live(environment: dict[str, str], log: Path, slow: bool) -> None:
    """The life of the forked process."""
    begin_anew(environment, log, log)
    if slow:
        quick = generation.stop_if_asked

        def slowly(context: object) -> None:
            time.sleep(TOKEN_S)
            quick(context)

        generation.stop_if_asked = slowly
    main.main()


Start = Callable[..., ForkServerProcess]


@pytest.fixture
def start(queue: Path) -> Iterator[Start]:
    """Starts the process."""
    begun: list[ForkServerProcess] = []

    def once(idle: float = 60.0, slow: bool = False) -> ForkServerProcess:
        environment = {**os.environ, "SLIMSCOPE_IDLE_EXIT": str(idle / 10)}
        begun.append(FORKS.Process(target=live, args=(environment, queue / "log.txt", slow)))
        begun[-1].start()
        return begun[-1]

    yield once
    for process in begun:
        process.kill()
        process.join()
    SupervisorLoop(LocalEngine(1)).turn()  # and what it had begun is nobody's


def ask(**values: object) -> Job:
    return submit("generate", {**SMALL, **values}, HOST)


def test_it_answers_at_once_and_ends_when_idle(start: Start) -> None:
    job = ask(sides="toy, toy")
    process = start(idle=0.2)
    process.join(PATIENCE_S)
    assert process.exitcode == 0 and not PLAYGROUND.is_alive()
    ended = queries.job(job.id)
    assert ended.state == State.SUCCEEDED and ended.attempts_made == 1, ended.error
    (attempt,) = queries.attempts(job.id)
    assert attempt.engine_ref["pid"] == process.pid and attempt.outcome == "succeeded"
    assert read_transcript(job.run, 1).text == read_transcript(job.run, 2).text != ""


def test_two_processes_give_an_answer_once(start: Start) -> None:
    jobs = [ask(seed=n) for n in range(3)]
    both = start(idle=0.5), start(idle=0.5)
    for process in both:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    assert [queries.job(job.id).attempts_made for job in jobs] == [1, 1, 1]


def test_a_killed_process_loses_nothing_and_gives_no_answer_twice(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = SupervisorLoop(LocalEngine(1))
    woken: list[bool] = []
    monkeypatch.setattr(PLAYGROUND, "wake", lambda: woken.append(True))
    done, cut = ask(max_new_tokens=2), ask(max_new_tokens=60, seed=1)
    assert woken == [True, True]  # by each that asks
    woken.clear()
    process = start(slow=True)
    until(lambda: queries.job(done.id).state == State.SUCCEEDED)
    until(lambda: len(read_transcript(cut.run, 1).passes) > 2, meanwhile=loop.turn)
    assert queries.job(cut.id).state == State.RUNNING and not woken
    process.kill()
    until(lambda: queries.job(cut.id).state == State.QUEUED, meanwhile=loop.turn)
    assert queries.job(cut.id).retries_left == service.RETRIES - 1
    until(lambda: bool(woken), meanwhile=loop.turn)  # the supervisor starts the next
    start()
    until(lambda: queries.job(cut.id).state == State.SUCCEEDED, meanwhile=loop.turn)
    assert [a.outcome for a in queries.attempts(cut.id)] == [None, "succeeded"]
    assert queries.job(done.id).attempts_made == 1
    assert len(read_transcript(cut.run, 1).tokens) <= 60


def test_an_answer_is_stopped_and_the_others_go_on(start: Start) -> None:
    stopped, other = ask(max_new_tokens=60), ask(max_new_tokens=60, seed=1)
    process = start(slow=True)
    until(lambda: bool(read_transcript(stopped.run, 1).passes))
    service.cancel(stopped.run, HOST)
    service.cancel(stopped.run, HOST)  # twice: would kill the process of a job
    loop = SupervisorLoop(LocalEngine(1))
    until(lambda: queries.job(stopped.id).state == State.CANCELLED, meanwhile=loop.turn)
    until(lambda: queries.job(other.id).state == State.SUCCEEDED, meanwhile=loop.turn)
    assert process.is_alive() and queries.job(other.id).attempts_made == 1


def test_an_end_on_request_leaves_the_answer_to_the_next(start: Start) -> None:
    job = ask(max_new_tokens=60)
    process = start(slow=True)
    until(lambda: bool(read_transcript(job.run, 1).passes))
    process.terminate()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    waiting = queries.job(job.id)
    assert waiting.state == State.QUEUED and waiting.retries_left == service.RETRIES
