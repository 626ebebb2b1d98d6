"""The artifacts are on a host of their own: in an S3 store, or in a folder that is mounted."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from backend.checkpoints import MANIFEST
from backend.queue import scheduling, service
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from tests.cluster.hosts import s3
from tests.cluster.hosts.conftest import Lab, count, counted, has_ended, steps, took
from tests.cluster.hosts.network import HERE, Host
from tests.queue.conftest import HOST
from tests.waiting import until

HELD_S = 45.0  # by a fault; then the store is asked again within a minute
AGAIN_S = 60.0 + 30.0  # a connection that was cut off is given up
Fault = Callable[[Lab, Host, str], None]


@pytest.fixture
def store(lab: Lab) -> Host:
    """The host of the store, which both machines use instead of a folder that they share."""
    if not s3.PACKAGES.exists():
        pytest.skip("moto and s3fs are not installed: make test-hosts does it")
    host = lab.add("store", 4)
    imported = {"PYTHONPATH": f"{s3.ROOT}:{HERE}:{s3.PACKAGES}"}
    host.start("-m", "tests.cluster.hosts.s3", **imported)
    at = f"http://{host.address}:{s3.PORT}"  # moto takes the first part of a name for a bucket
    for machine in (lab.a, lab.b):
        machine.told |= imported | s3.CLIENT | {"AWS_ENDPOINT_URL": at}
    until(lambda: stored(host) is not None)
    return host


def stored(store: Host) -> list[str] | None:
    """What is in the store; None while it has not begun."""
    with store.inside():
        try:
            found = httpx.get(f"http://localhost:{s3.PORT}{s3.LIST}", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return None
    return found.text.splitlines()


def is_stored(store: Host, run: int, step: int) -> bool:
    return f"{queries.job(run).run}/work/step-{step}/{MANIFEST}" in (stored(store) or [])


def steps_on(host: Host, run: int) -> int:
    """How many checkpoints a machine has."""
    return len([*host.data("artifacts", queries.job(run).run, "work").glob("step-*")])


def log_of(host: Host, run: int, attempt: int = 1) -> str:
    file: Path = host.data("artifacts", queries.job(run).run, f"a{attempt}", "log.txt")
    return file.read_text() if file.exists() else ""


def cut_off(lab: Lab, store: Host, how: str) -> None:
    """From the store alone."""
    lab.network.part(lab.a, store)


def fails(lab: Lab, store: Host, how: str) -> None:
    (store.folder / "fault").write_text(how)


@pytest.mark.parametrize(
    ("fault", "how"), [(cut_off, ""), (fails, "503"), (fails, "cut")], ids=["cut off", "503", "cut"]
)
def test_work_goes_on_without_the_store_and_a_run_ends_when_it_has_everything(
    lab: Lab, store: Host, fault: Fault, how: str
) -> None:
    lab.supervise(lab.a)
    run = count(steps=60, pause=0.2)
    until(lambda: is_stored(store, run, 1))
    fault(lab, store, how)
    began = time.monotonic()
    until(lambda: steps_on(lab.a, run) == 60)  # all of it
    time.sleep(max(0.0, HELD_S - (time.monotonic() - began)))
    assert queries.job(run).state == State.RUNNING and counted(run) == [*range(60)]
    lab.network.heal()
    (store.folder / "fault").write_text("")
    took(lambda: has_ended(run), AGAIN_S, "the store was there again; ended")
    assert queries.job(run).state == State.SUCCEEDED and len(queries.attempts(run)) == 1
    said = (
        "Uploads to the artifact store fail" if how else "The run is waiting for the artifact store"
    )
    assert said in log_of(lab.a, run)


def test_a_run_that_waits_for_a_store_it_is_cut_off_from_is_cancelled_in_time(
    lab: Lab, store: Host
) -> None:
    lab.supervise(lab.a)
    run = count(steps=10, pause=0.2)
    until(lambda: is_stored(store, run, 1))
    cut_off(lab, store, "")
    until(lambda: steps_on(lab.a, run) == 10)
    service.cancel([run], HOST)
    took(lambda: has_ended(run), 45, "cancelled")
    assert queries.job(run).state == State.CANCELLED


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "cut off from the database alone"])
def test_another_machine_goes_on_with_what_is_in_the_store(
    lab: Lab, store: Host, lost: bool
) -> None:
    lab.supervise(lab.a)
    run = count(steps=60, pause=0.5)
    until(lambda: is_stored(store, run, 2))
    lab.supervise(lab.b)
    until(lab.b.data(".slimscope", "supervisor.lock").exists)
    if lost:
        lab.a.lose()
    else:
        lab.network.part(lab.a, lab.db)
    took(lambda: len(queries.attempts(run)) == 2, 90, "taken over")
    if not lost:
        assert not lab.a.processes("jobs.runtime.main")
    until(lambda: has_ended(run), 90)
    assert queries.attempts(run)[1].resumed_from and counted(run) == [*range(60)]
    assert "Continuing from checkpoint" in log_of(lab.b, run, 2)


# disk ---------------------------------------------------------------------------------------------


SFTP, PORT = Path("/usr/lib/openssh/sftp-server"), 2022
SERVE = f"""
import socket, subprocess
server = socket.create_server(("", {PORT}))
while True:
    connection, _ = server.accept()
    subprocess.Popen(["{SFTP}"], stdin=connection, stdout=connection)
"""


@pytest.fixture
def disk(lab: Lab) -> Host:
    """The host that has the disk."""
    if not shutil.which("sshfs") or not SFTP.exists():
        pytest.skip("sshfs is not installed: apt install sshfs openssh-sftp-server")
    folder = settings().artifacts
    folder.mkdir(exist_ok=True)
    host = lab.add("disk", 7)
    host.start("-c", SERVE)
    for machine in (lab.a, lab.b):
        machine.knows(lab.db, host)
        mount = ("sshfs", "-f", "-o", f"directport={PORT}", f"disk.lab:{folder}", str(folder))
        begun = time.monotonic()
        while machine.execute("mountpoint", "-q", str(folder)).wait():
            assert time.monotonic() - begun < 20
            machine.execute(*mount)
            time.sleep(1)
    return host


def test_a_run_stands_still_with_its_disk_and_pages_do_not(lab: Lab, disk: Host) -> None:
    lab.a.start("app.py")
    until(lambda: lab.visit("/healthz").text == "ok\n", 120)
    run = count(steps=60, pause=0.3)
    until(lambda: steps(run) > 3)
    lab.network.part(lab.a, disk)
    time.sleep(3)
    before = steps(run)
    name = queries.job(run).run
    slowest = 0.0
    for _ in range(6):
        began = time.monotonic()
        pages = [
            lab.visit(path) for path in ("/healthz", "/slimscope/pulse", "/", f"/run?id={name}")
        ]
        slowest = max(slowest, time.monotonic() - began)
        assert [page.status_code for page in pages] == [200] * 4
        time.sleep(3)
    assert steps(run) <= before + 1 and queries.job(run).state == State.RUNNING
    assert scheduling.status().supervisor_alive
    lab.network.heal()
    print(f"four pages take {slowest:.1f} s meanwhile")
    took(lambda: steps(run) > before + 1, 60, "the run goes on")
    until(lambda: has_ended(run))
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(60)]
