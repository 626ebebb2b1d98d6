"""The server of the database crashes, stands still or is away while runs go on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy.exc import OperationalError

from backend.queue import supervisor
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.dialects.base import NamedLock
from backend.store.migrate import upgrade
from backend.store.session import DatabaseLock, engine_for
from backend.store.states import State
from jobs.runtime.context import SPOOL
from jobs.submit import submit
from tests import postgres
from tests.conftest import Given
from tests.queue.conftest import HOST, curve, process_of, running
from tests.waiting import until


@pytest.fixture
def own(on_server: str, given: Given, data_dir: Path) -> Iterator[postgres.Server]:
    """A server that a test may stop, with tables."""
    with postgres.server() as server:
        server.execute("CREATE DATABASE slimscope")
        given(DATABASE_URL=server.url.format("slimscope"))
        upgrade()
        yield server
        engine_for.cache_clear()


@pytest.fixture
def queue(own: postgres.Server, counting_queue: Path) -> Path:
    """The queue on that server."""
    return counting_queue


def turned(loop: SupervisorLoop) -> None:
    """One turn, as the supervisor takes it."""
    try:
        loop.turn()
    except OperationalError:
        time.sleep(0.1)


def until_succeeded(loop: SupervisorLoop, run: int) -> None:
    until(lambda: queries.job(run).state == State.SUCCEEDED, 90, lambda: turned(loop))


def started(loop: SupervisorLoop, steps: int) -> int:
    """A run that has made its first checkpoints."""
    job = submit("count", {"steps": steps, "pause": 0.2}, HOST)
    begun = running(job.id, 1)
    until(lambda: begun() and queries.job(job.id).state == State.RUNNING, meanwhile=loop.turn)
    return job.id


@contextmanager
def away(server: postgres.Server, how: signal.Signals) -> Iterator[None]:
    """A crash (SIGQUIT), an orderly stop (SIGINT), or a server that stands still (SIGSTOP)."""
    if how != signal.SIGSTOP:
        server.stop(how)
        yield
        server.start()
        return
    served = psutil.Process(server.process.pid)
    frozen = [served, *served.children()]
    for process in frozen:
        process.suspend()
    yield
    for process in frozen:
        process.resume()


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT, signal.SIGSTOP])
def test_a_run_goes_on_while_the_server_is_away_and_no_figure_is_lost(
    loop: SupervisorLoop, own: postgres.Server, how: signal.Signals
) -> None:
    run = started(loop, steps=30)
    folder = settings().artifacts / queries.job(run).run / "work"
    with away(own, how):
        waits = how == signal.SIGSTOP  # so would this process
        before = len([*folder.glob("step-*")])
        until(
            lambda: len([*folder.glob("step-*")]) >= before + 4,
            meanwhile=bool if waits else lambda: turned(loop),
        )
        assert waits or (folder / SPOOL).exists()
    until_succeeded(loop, run)
    assert queries.job(run).attempts_made == 1 and curve(run, "count") == [*range(30)]


def test_a_run_that_dies_while_the_server_is_away_loses_no_figure(
    loop: SupervisorLoop, own: postgres.Server
) -> None:
    run = started(loop, steps=16)
    process = process_of(run)
    folder = settings().artifacts / queries.job(run).run / "work"
    own.stop()
    until((folder / SPOOL).exists)
    process.kill()
    process.wait(60)
    own.start()
    until_succeeded(loop, run)
    assert queries.job(run).attempts_made == 2 and curve(run, "count") == [*range(16)]
    made = curve(run, "attempt")
    assert made == sorted(made) and made.count(1) >= 2  # each step once, those of the first stay


def test_the_supervisor_waits_for_the_server_and_leads_again(
    loop: SupervisorLoop, own: postgres.Server, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(IDLE_EXIT="5")
    lead, slept = DatabaseLock(engine_for(settings().url), NamedLock.SUPERVISOR), list[float]()
    assert lead.is_held()
    run = submit("count", {"steps": 2, "pause": 0}, HOST).id
    own.stop()

    def wait(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            own.start()
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(supervisor.time, "sleep", wait)
    supervisor.run_until_idle(loop, lead)
    assert queries.job(run).state == State.SUCCEEDED and lead.was_held
