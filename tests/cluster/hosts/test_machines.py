"""A machine is lost, or cut off from the database, and another one is there."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from backend.store import queries
from backend.store.dialects.postgresql import GONE_S
from backend.store.states import State
from tests.cluster.hosts.conftest import (
    LEAVING_S,
    OFFLINE_S,
    OVERDUE_S,
    Lab,
    counted,
    has_ended,
    steps,
    until,
)
from tests.cluster.hosts.test_network import answers_lost, both_ways

SLACK_S = 6.0  # of a busy machine
RUN = "jobs.runtime.main"


def lost(lab: Lab) -> None:
    lab.a.lose()


@pytest.mark.parametrize("fails", [lost, both_ways, answers_lost])
def test_another_supervisor_leads_in_time(lab: Lab, fails: Callable[[Lab], None]) -> None:
    lab.supervise(lab.a)
    until(lambda: lab.leader() == lab.a.address, 60)
    lab.supervise(lab.b)
    until(lambda: lab.b.processes("supervisor"), 30)
    time.sleep(5)  # it asks
    fails(lab)
    took = until(lambda: lab.leader() == lab.b.address, GONE_S + SLACK_S)
    print(f"{fails.__name__}: another supervisor leads after {took:.1f} s")


@pytest.mark.parametrize(
    ("fails", "pause"), [(lost, 0.5), (both_ways, 0.5), (both_ways, 60.0)],
    ids=["lost", "cut off", "cut off in a long step"],
)  # fmt: skip
def test_a_run_goes_on_elsewhere_once_its_machine_can_write_nothing_more(
    lab: Lab, fails: Callable[[Lab], None], pause: float
) -> None:
    lab.supervise(lab.a)
    run = lab.count(steps=60, pause=pause)
    until(lambda: queries.job(run).state == State.RUNNING, 60)
    lab.supervise(lab.b)
    until(lambda: lab.b.processes("supervisor"), 30)
    time.sleep(5)
    fails(lab)
    began = time.monotonic()
    if fails is both_ways:
        until(lambda: not lab.a.processes(RUN), OFFLINE_S + OVERDUE_S + GONE_S + SLACK_S)
        assert len(queries.attempts(run)) == 1, "two machines worked on it"
        print(f"its process has ended after {time.monotonic() - began:.1f} s")
    until(lambda: len(queries.attempts(run)) == 2, OFFLINE_S + LEAVING_S + GONE_S + SLACK_S)
    print(f"another machine took it over after {time.monotonic() - began:.1f} s")
    lab.network.heal()
    if pause < 1:
        until(lambda: has_ended(run), 90)
        assert queries.job(run).state == State.SUCCEEDED and counted(run) == [*range(60)]
        assert queries.attempts(run)[1].resumed_from
    else:
        until(lambda: queries.attempts(run)[1].started_at, 60)
        assert not lab.a.processes(RUN)


@pytest.mark.parametrize(
    "lab", [("boot-a", "boot-b"), ("", "")], indirect=True, ids=["machines", "containers"]
)
def test_a_run_of_another_machine_or_container_is_not_taken_for_dead(lab: Lab) -> None:
    lab.supervise(lab.a, SLIMSCOPE_OFFLINE_S="600")
    run = lab.count(steps=50, pause=0.3)
    until(lambda: steps(run) > 1, 60)
    lab.supervise(lab.b, SLIMSCOPE_OFFLINE_S="600")
    until(lambda: lab.b.processes("supervisor"), 30)
    for process in lab.a.processes("import supervisor"):
        process.kill()
    until(lambda: lab.leader() == lab.b.address, GONE_S + SLACK_S)
    until(lambda: has_ended(run), 60)
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(50)]
