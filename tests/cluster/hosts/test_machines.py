"""A machine is lost or cut off from the database; the network between them fails, or is slow."""

import os
import sys
import time
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text

from backend.queue import scheduling, service
from backend.queue.supervisor import SHUTDOWN_GRACE_MS
from backend.store import queries
from backend.store.dialects.postgresql import PEER_TIMEOUT_S
from backend.store.session import writing
from backend.store.states import State
from tests.cluster.hosts.conftest import (
    OFFLINE_S,
    PORT,
    Lab,
    count,
    counted,
    has_ended,
    steps,
    took,
)
from tests.queue.conftest import HOST
from tests.waiting import until

SLACK_S = 6.0  # of a busy machine
TAKEN_OVER_S = OFFLINE_S + SHUTDOWN_GRACE_MS / 1000


def lost(lab: Lab) -> None:
    lab.a.lose()


def both_ways(lab: Lab) -> None:
    lab.network.part(lab.a, lab.db)


def answers_lost(lab: Lab) -> None:
    """Half of a connection: what the server is asked arrives."""
    lab.network.cut = {(lab.db.address, lab.a.address)}


def second_waits(lab: Lab) -> None:
    """The supervisor of `b` asks for the place of that of `a`."""
    lab.supervise(lab.b)
    until(lab.b.data(".slimscope", "supervisor.lock").exists)


@pytest.mark.parametrize("fails", [lost, both_ways, answers_lost])
def test_another_supervisor_leads_in_time(lab: Lab, fails: Callable[[Lab], None]) -> None:
    lab.supervise(lab.a)
    until(lambda: lab.leader() == lab.a.address)
    second_waits(lab)
    fails(lab)
    took(
        lambda: lab.leader() == lab.b.address,
        PEER_TIMEOUT_S + SLACK_S,
        "another supervisor leads",
    )


@pytest.mark.parametrize(
    ("fails", "pause"),
    [(lost, 0.5), (both_ways, 0.5), (both_ways, 90.0)],
    ids=["lost", "cut off", "cut off in a long step"],
)
def test_a_run_goes_on_elsewhere_once_its_machine_can_write_nothing_more(
    lab: Lab, fails: Callable[[Lab], None], pause: float
) -> None:
    lab.supervise(lab.a)
    run = count(steps=60, pause=pause)
    until(lambda: queries.job(run).state == State.RUNNING)
    second_waits(lab)
    fails(lab)
    if fails is both_ways:
        took(lambda: not lab.a.processes("jobs.runtime.main"), TAKEN_OVER_S, "ended")
        assert len(queries.attempts(run)) == 1, "two machines worked on it"
    took(lambda: len(queries.attempts(run)) == 2, TAKEN_OVER_S + SLACK_S, "taken over")
    lab.network.heal()
    if pause < 1:
        until(lambda: has_ended(run), 90)
        assert counted(run) == [*range(60)] and queries.attempts(run)[1].resumed_from


@pytest.mark.parametrize(
    "lab", [("boot-a", "boot-b"), ("", "")], indirect=True, ids=["machines", "containers"]
)
def test_a_run_of_another_machine_or_container_is_not_taken_for_dead(lab: Lab) -> None:
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    run = count(steps=50, pause=0.3)
    until(lambda: steps(run) > 1)
    lab.supervise(lab.b, SLIMSCOPE_OFFLINE_S="600")
    for process in lab.a.processes("backend.queue.supervisor"):
        process.kill()
    until(lambda: lab.leader() == lab.b.address)
    until(lambda: has_ended(run))
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(50)]


def test_two_machines_act_on_one_queue(lab: Lab) -> None:
    """Each adds runs, and cancels those of the other, at the same time."""
    lab.supervise(lab.a), lab.supervise(lab.b)
    runs = [count(steps=400, pause=0.2), count(steps=5)]
    until(lambda: steps(runs[0]) > 1)
    names = [queries.job(run).run for run in runs]
    line = (sys.executable, "-m", "jobs", "cancel", *names)
    both = [host.execute(*line) for host in (lab.a, lab.b)]
    assert {each.wait(60) for each in both} <= {0, 2}  # the second may find it ended
    until(lambda: has_ended(runs[0]) and has_ended(runs[1]))
    assert [queries.job(run).state for run in runs] == [State.CANCELLED] * 2
    assert [len(queries.attempts(run)) for run in runs] == [1, 0]


# network ------------------------------------------------------------------------------------------


NOTICED_S, BACK_S = 10.0, 15.0  # until a run goes on without the database; until states are true
AWAY_S = float(os.environ.get("SLIMSCOPE_TEST_AWAY_S", "24"))  # longer than connections live
END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr IS NOT NULL"


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
    took(lambda: len(counted(run)) > told + 10, BACK_S, "true")
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
    took(lambda: len(queries.attempts(run)) == 2, BACK_S + 15, "goes on")
    until(lambda: has_ended(run))
    assert queries.attempts(run)[1].resumed_from and counted(run) == [*range(60)]


def test_pages_say_that_the_database_does_not_answer_and_browsers_may_vanish(lab: Lab) -> None:
    lab.a.start("app.py", SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.visit("/healthz").text == "ok\n", 120)
    run = count(steps=40, pause=0.5)
    until(lambda: steps(run) > 1)
    both_ways(lab)
    assert took(lambda: lab.visit("/healthz").status_code == 503, 20, "503") < 7
    began = time.monotonic()
    for _ in range(8):
        html = lab.visit("/slimscope/pulse").json()["html"]
        assert "The database has not answered since 20" in html
    assert "slimscope_database_up 0" in lab.visit("/metrics").text
    assert time.monotonic() - began < 8
    lab.network.heal()
    until(lambda: lab.visit("/healthz").text == "ok\n", BACK_S)
    with lab.b.inside():
        browser = httpx.Client(base_url=f"http://{lab.a.address}:{PORT}", trust_env=False)
        browser.send(browser.build_request("GET", "/gradio_api/heartbeat/page"), stream=True)
    assert lab.a.connections(PORT, lab.b) == 1
    lab.b.lose()
    took(lambda: lab.a.connections(PORT, lab.b) == 0, 60, "a browser that is gone is forgotten")
    until(lambda: has_ended(run))
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(40)]


def test_a_network_that_is_slow_and_lossy_only_takes_time(lab: Lab) -> None:
    """200 ms there and back, 2 % of the packets lost, and 5 % out of order."""
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.leader() == lab.a.address)
    lab.network.delay_s, lab.network.loss, lab.network.late = 0.1, 0.02, 0.05
    run = count(steps=12, pause=0.5)
    took(lambda: steps(run) > 1, 60, "begun")
    began = time.monotonic()
    while not has_ended(run):
        assert scheduling.status().supervisor_alive and time.monotonic() - began < 90
        time.sleep(0.5)
    print(f"{(time.monotonic() - began) / 10:.1f} s a step")
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(12)]
    other = count(steps=600, pause=0.2)
    until(lambda: steps(other) > 1)
    service.cancel([other], HOST)
    took(lambda: has_ended(other), 60, "cancelled")


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
