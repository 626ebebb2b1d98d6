"""A cluster of Ray or of Slurm: the head, two nodes, the database and the dashboard, each on its
host."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backend.queue.scheduling import status
from backend.queue.supervisor import EXIT_GRACE_MS
from backend.store import queries
from backend.store.states import State
from tests.cluster import nodes
from tests.cluster.hosts import slurm
from tests.cluster.hosts.conftest import OFFLINE_S, Lab, count, counted, has_ended, steps, took
from tests.cluster.hosts.network import ROOT, Host
from tests.cluster.nodes import RayCluster
from tests.waiting import until

NOTICED_S = {"ray": 75, "slurm": slurm.NODE_TIMEOUT_S + 15}  # a node is gone
STEPS, SLACK_S = 170, 30.0  # half a second each; to start elsewhere, on a busy machine
RUN = "jobs.runtime.main"
pytestmark = pytest.mark.timeout(600)
TOLD = ("DATABASE_URL", "DATA_DIR", "ARTIFACTS", "PLUGINS", "PYTHON")


@dataclass
class LabCluster(RayCluster):
    """A cluster of Ray whose machines are hosts."""

    hosts: Mapping[str, Host] = field(default_factory=dict)

    def ip(self, name: str) -> str:
        return self.hosts[name].address

    def entered(self, name: str) -> list[str]:
        return self.hosts[name].entered


@dataclass
class Site:
    """Where the head and the dashboard of a cluster are; `a` and `b` are its nodes."""

    lab: Lab
    head: Host
    front: Host
    engine: str

    def start_ray(self, folder: Path, told: dict[str, str]) -> dict[str, str]:
        """Start Ray; return what the supervisor has to know."""
        hosts = {"head": self.head, "1": self.lab.a, "2": self.lab.b}
        cluster = LabCluster(folder, told, hosts=hosts)
        with self.head.inside():
            cluster.start_head()
        cluster.start_node(1), cluster.start_node(2)
        at = f"http://head.lab:{cluster.dashboard}"
        return {"SLIMSCOPE_RAY_ADDRESS": at, "SLIMSCOPE_RAY_TOKEN": cluster.token}

    def start_slurm(self, folder: Path, told: dict[str, str]) -> dict[str, str]:
        """The same of Slurm."""
        names = ",".join(f"SLIMSCOPE_{name}" for name in TOLD)
        uses = slurm.start(folder, self.head, [self.lab.a, self.lab.b])
        return told | uses | {"SLIMSCOPE_SLURM_ARGS": f"--export={names}", "SLIMSCOPE_SLOTS": "2"}


@pytest.fixture(params=["ray", "slurm"])
def site(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A cluster whose supervisor waits for runs."""
    without_ray = "" if nodes.installed() else "Ray is not installed: make test-hosts does it"
    if why := without_ray if request.param == "ray" else slurm.missing():
        pytest.skip(why)
    made = Site(lab, lab.add("head", 5), lab.add("front", 6), request.param)
    hosts = (lab.db, lab.a, lab.b, made.head, made.front)
    for host in hosts:
        host.knows(*hosts)
    folder = Path(tempfile.mkdtemp(prefix="sc-"))  # short, since it holds sockets
    told = lab.told | {
        "SLIMSCOPE_PYTHON": f"env PYTHONPATH={ROOT} {sys.executable}",
        "SLIMSCOPE_DATA_DIR": str(folder / "data"),
    }
    try:
        start = made.start_ray if request.param == "ray" else made.start_slurm
        uses = start(folder, told) | {"SLIMSCOPE_ENGINE": request.param}
        lab.supervise(made.front, SLIMSCOPE_THREADS="1", **uses)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lost(site: Site, node: Host) -> None:
    node.lose()


def from_head(site: Site, node: Host) -> None:
    site.lab.network.part(node, site.head)


def from_head_and_database(site: Site, node: Host) -> None:
    from_head(site, node)
    site.lab.network.part(node, site.lab.db)


@pytest.mark.parametrize("fails", [lost, from_head, from_head_and_database])
def test_a_run_of_a_node_that_the_cluster_does_not_reach_goes_on_on_another(
    site: Site, fails: Callable[[Site, Host], None]
) -> None:
    run, lab = count(steps=STEPS, pause=0.5), site.lab
    until(lambda: steps(run) > 3)
    (node,) = [host for host in (lab.a, lab.b) if host.processes(RUN)]
    fails(site, node)
    began = time.monotonic()
    took(
        lambda: len(made := queries.attempts(run)) == 2 and made[1].started_at,
        NOTICED_S[site.engine] + SLACK_S,
        "works elsewhere",
    )
    if fails is not lost:  # until then it makes the same checkpoints
        until(lambda: not node.processes(RUN), OFFLINE_S + 25)
    print(f"the process before had ended after {time.monotonic() - began:.0f} s")
    until(lambda: has_ended(run), STEPS)
    assert queries.job(run).state == State.SUCCEEDED and len(queries.attempts(run)) == 2
    assert counted(run) == [*range(STEPS)] and queries.attempts(run)[1].resumed_from


def test_nothing_changes_while_the_dashboard_is_cut_off_from_the_head(site: Site) -> None:
    first, second = count(steps=30, pause=0.5), count(steps=220, pause=0.5)
    until(lambda: steps(first) > 3 and steps(second) > 3)
    site.lab.network.part(site.front, site.head)
    took(lambda: has_ended(first), 30 * 0.5 + EXIT_GRACE_MS / 1000 + SLACK_S, "ended")
    took(lambda: status().silent_since is not None, 60, "pages say so")
    assert queries.job(first).state == State.SUCCEEDED
    assert queries.job(second).state == State.RUNNING and counted(first) == [*range(30)]
    site.lab.network.heal()
    took(lambda: status().silent_since is None, SLACK_S, "true")
    until(lambda: has_ended(second), 120)
    assert len(queries.attempts(second)) == 1 and counted(second) == [*range(220)]
