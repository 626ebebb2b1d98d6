"""A machine is lost, or cut off from the database, and another one is there."""

import sys
from collections.abc import Callable

import pytest

from backend.queue.supervisor import SHUTDOWN_GRACE_MS
from backend.store import queries
from backend.store.dialects.postgresql import PEER_TIMEOUT_S
from backend.store.states import State
from tests.cluster.hosts.conftest import OFFLINE_S, Lab, count, counted, has_ended, steps, took
from tests.cluster.hosts.test_network import answers_lost, both_ways
from tests.waiting import until

SLACK_S = 6.0  # of a busy machine
TAKEN_OVER_S = OFFLINE_S + SHUTDOWN_GRACE_MS / 1000


def lost(lab: Lab) -> None:
    lab.a.lose()


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
    seconds = took(lambda: lab.leader() == lab.b.address, PEER_TIMEOUT_S + SLACK_S)
    print(f"another supervisor leads after {seconds:.1f} s")


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
    left = 0.0
    if fails is both_ways:
        left = took(lambda: not lab.a.processes("jobs.runtime.main"), TAKEN_OVER_S)
        assert len(queries.attempts(run)) == 1, "two machines worked on it"
    over = left + took(lambda: len(queries.attempts(run)) == 2, TAKEN_OVER_S + SLACK_S)
    print(f"ended after {left:.0f} s, taken over after {over:.0f} s")
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
