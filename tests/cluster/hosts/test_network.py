"""The network between a machine and the database fails while a run works."""

import os
import time
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text

from backend.queue import scheduling, service
from backend.store import queries
from backend.store.session import writing
from tests.cluster.hosts.conftest import PORT, Lab, count, counted, has_ended, steps, took
from tests.queue.conftest import HOST
from tests.waiting import until

NOTICED_S, BACK_S = 10.0, 15.0  # until a run goes on without the database; until states are true
AWAY_S = float(os.environ.get("SLIMSCOPE_TEST_AWAY_S", "24"))  # longer than connections live
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
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S=str(AWAY_S + 600))
    total = int(100 * AWAY_S / 24)
    run = count(steps=total, pause=0.2)
    until(lambda: steps(run) > 1)
    fails(lab)
    before, told = steps(run), len(counted(run))
    time.sleep(NOTICED_S + 4)
    assert steps(run) >= before + 4, "it stood still"
    time.sleep(AWAY_S - NOTICED_S - 4)
    lab.network.heal()
    lab.a.knows(lab.db)
    print(f"true after {took(lambda: len(counted(run)) > told + 10, BACK_S):.1f} s")
    until(lambda: has_ended(run), 60 + AWAY_S)
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(total)]


def test_a_run_that_dies_while_it_is_cut_off_loses_no_figure(lab: Lab) -> None:
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    run = count(steps=60, pause=0.3)
    until(lambda: steps(run) > 1)
    both_ways(lab)
    time.sleep(NOTICED_S + 4)
    (process,) = lab.a.processes("jobs.runtime.main")
    process.kill()
    lab.network.heal()
    seconds = took(lambda: len(queries.attempts(run)) == 2, BACK_S + 15)
    print(f"goes on after {seconds:.0f} s")
    until(lambda: has_ended(run))
    assert queries.attempts(run)[1].resumed_from and counted(run) == [*range(60)]


def test_pages_say_that_the_database_does_not_answer_and_browsers_may_vanish(lab: Lab) -> None:
    lab.a.start("app.py", SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.visit("/healthz").text == "ok\n", 120)
    run = count(steps=40, pause=0.5)
    until(lambda: steps(run) > 1)
    both_ways(lab)
    seconds = took(lambda: lab.visit("/healthz").status_code == 503, 20)
    began = time.monotonic()
    for _ in range(8):
        html = lab.visit("/slimscope/pulse").json()["html"]
        assert "The database has not answered since 20" in html
    assert "slimscope_database_up 0" in lab.visit("/metrics").text
    assert seconds < 7 and time.monotonic() - began < 8
    lab.network.heal()
    until(lambda: lab.visit("/healthz").text == "ok\n", BACK_S)
    with lab.b.inside():
        browser = httpx.Client(base_url=f"http://{lab.a.address}:{PORT}", trust_env=False)
        browser.send(browser.build_request("GET", "/gradio_api/heartbeat/page"), stream=True)
    assert lab.a.connections(PORT, lab.b) == 1
    lab.b.lose()
    gone = took(lambda: lab.a.connections(PORT, lab.b) == 0, 60)
    print(f"503 after {seconds:.1f} s, a browser that is gone is forgotten after {gone:.0f} s")
    until(lambda: has_ended(run))
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(40)]


def test_a_network_that_is_slow_and_lossy_only_takes_time(lab: Lab) -> None:
    """200 ms there and back, 2 % of the packets lost, and 5 % out of order."""
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.leader() == lab.a.address)
    lab.network.delay_s, lab.network.loss, lab.network.late = 0.1, 0.02, 0.05
    run = count(steps=12, pause=0.5)
    begun, began = took(lambda: steps(run) > 1, 60), time.monotonic()
    while not has_ended(run):
        assert scheduling.status().supervisor_alive and time.monotonic() - began < 90
        time.sleep(0.5)
    each = (time.monotonic() - began) / 10
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(12)]
    other = count(steps=600, pause=0.2)
    until(lambda: steps(other) > 1)
    service.cancel([other], HOST)
    gone = took(lambda: has_ended(other), 60)
    print(f"begun after {begun:.0f} s, {each:.1f} s a step, cancelled after {gone:.0f} s")


@pytest.mark.parametrize("off_s", [90, -90])
def test_a_clock_that_is_off_by_90_s_starts_and_ends_nothing(lab: Lab, off_s: int) -> None:
    lab.supervise(lab.a, SLIMSCOPE_TEST_CLOCK_S=str(off_s))
    run = count(steps=20, pause=0.3)
    until(lambda: steps(run) > 1)
    lab.supervise(lab.b)
    while not has_ended(run):
        assert scheduling.status().supervisor_alive and lab.leader() == lab.a.address
        time.sleep(0.3)
    (attempt,) = queries.attempts(run)
    assert counted(run) == [*range(20)]
    assert attempt.ended_at and 0 < attempt.ended_at - attempt.launched_at < 60_000
