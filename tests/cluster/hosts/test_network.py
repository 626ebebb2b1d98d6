"""The network between a machine and the database fails while a run works."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text

from backend.queue import scheduling, service
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from tests.cluster.hosts.conftest import (
    Lab,
    counted,
    has_ended,
    steps,
    until,
)
from tests.queue.conftest import HOST

AWAY_S = 24.0  # longer than any connection lives without its other end
NOTICED_S = 10.0  # until a run goes on without the database
BACK_S = 15.0  # until states are true again
END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr IS NOT NULL"


def both_ways(lab: Lab) -> None:
    lab.network.part(lab.a, lab.db)


def answers_lost(lab: Lab) -> None:
    """Half of a connection: what the server is asked arrives."""
    lab.network.cut = {(lab.db.address, lab.a.address)}


def no_names(lab: Lab) -> None:
    """Connections end, and the server of names does not answer when they are made anew."""
    lab.a.knows()
    with writing() as session:
        session.execute(text(END_ALL))


@pytest.mark.parametrize("fails", [both_ways, answers_lost, no_names])
def test_a_run_goes_on_without_the_database_and_states_are_true_soon_after(
    lab: Lab, fails: Callable[[Lab], None]
) -> None:
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    run = lab.count(steps=100, pause=0.2)
    until(lambda: steps(run) > 1, 60)
    fails(lab)
    before, told = steps(run), len(counted(run))
    time.sleep(NOTICED_S + 4)
    assert steps(run) >= before + 4, "it stood still"
    time.sleep(AWAY_S - NOTICED_S - 4)
    lab.network.heal()
    lab.a.knows(lab.db)
    until(lambda: len(counted(run)) > told + 10, BACK_S)
    until(lambda: has_ended(run), 60)
    assert queries.job(run).state == State.SUCCEEDED
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(100)]


def test_pages_say_that_the_database_does_not_answer_and_wait_for_it_no_longer(lab: Lab) -> None:
    lab.a.start("app.py")
    until(lambda: lab.visit("/healthz").text == "ok\n", 120)
    run = lab.count(steps=40, pause=0.5)
    until(lambda: steps(run) > 1, 60)
    both_ways(lab)
    took = until(lambda: lab.visit("/healthz").status_code == 503, 20)
    assert took < 7, "the first who asks waits 5 s"
    began = time.monotonic()
    for _ in range(8):
        html = lab.visit("/slimscope/pulse").json()["html"]
        assert "The database does not answer since 20" in html
    assert time.monotonic() - began < 8
    assert "slimscope_database_up 0" in lab.visit("/metrics").text
    lab.network.heal()
    until(lambda: lab.visit("/healthz").text == "ok\n", BACK_S)
    until(lambda: has_ended(run), 60)
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(40)]


def test_a_browser_that_is_gone_without_a_word_holds_no_connection(lab: Lab) -> None:
    lab.a.start("app.py")
    until(lambda: lab.visit("/healthz").text == "ok\n", 120)
    with lab.b.inside():
        browser = httpx.Client(trust_env=False, timeout=10)
        stream = browser.send(
            browser.build_request("GET", lab.at("/gradio_api/heartbeat/abc")), stream=True
        )
    assert stream.status_code == 200 and lab.connections(lab.b) == 1
    lab.b.lose()
    until(lambda: lab.connections(lab.b) == 0, 60)


def test_a_network_that_is_slow_and_lossy_only_takes_time(lab: Lab) -> None:
    """200 ms there and back, and 2 % of the packets lost."""
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.leader() == lab.a.address, 60)
    lab.network.delay_s, lab.network.loss = 0.1, 0.02
    run, began = lab.count(steps=60, pause=0.5), time.monotonic()
    until(lambda: steps(run) > 1, 60)
    print(f"200 ms, 2 %: a run works {time.monotonic() - began:.0f} s after it was added")
    while not has_ended(run):
        assert scheduling.status().supervisor_alive and time.monotonic() - began < 150
        time.sleep(0.5)
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(60)]
    other = lab.count(steps=600, pause=0.2)
    until(lambda: steps(other) > 1, 60)
    service.cancel(other, HOST)
    took = until(lambda: queries.job(other).state == State.CANCELLED, 60)
    print(f"200 ms, 2 %: cancelled after {took:.0f} s")


@pytest.mark.parametrize("off_s", [90, -90])
def test_a_clock_that_is_off_by_90_s_starts_and_ends_nothing(lab: Lab, off_s: int) -> None:
    lab.supervise(lab.a, SLIMSCOPE_TEST_CLOCK_S=str(off_s))
    run = lab.count(steps=20, pause=0.3)
    until(lambda: steps(run) > 1, 60)
    lab.supervise(lab.b)
    while not has_ended(run):
        assert scheduling.status().supervisor_alive and lab.leader() == lab.a.address
        time.sleep(0.3)
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(20)]
    (attempt,) = queries.attempts(run)
    assert attempt.ended_at and 0 < attempt.ended_at - attempt.launched_at < 60_000
