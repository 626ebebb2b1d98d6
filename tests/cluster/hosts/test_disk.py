"""The folder of the artifacts is on its own host, and mounted by both machines. It stands for NFS,
which takes a kernel that has it: files travel as SFTP, and a mount waits as a hard one does."""

import shutil
import time
from pathlib import Path

import pytest

from backend.queue import scheduling
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from tests.cluster.hosts.conftest import Lab, count, counted, has_ended, steps, took
from tests.cluster.hosts.network import Host
from tests.waiting import until

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
    seconds = took(lambda: steps(run) > before + 1, 60)
    print(f"four pages take {slowest:.1f} s meanwhile, the run goes on {seconds:.0f} s afterward")
    until(lambda: has_ended(run))
    assert len(queries.attempts(run)) == 1 and counted(run) == [*range(60)]
