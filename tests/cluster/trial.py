"""Several machines on this one, to be tried by hand: PostgreSQL, a Ray cluster of two nodes and the
dashboard. `python -m tests.cluster.trial start` (`make run-cluster`), and `stop`.

What was started is written down in `.cluster/trial.json`; runs and database stay for the next time.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.cluster.nodes import ROOT, RayCluster, install
from tests.postgres import Server, programs

STATE = ROOT / ".cluster" / "trial.json"
DATABASE = "slimscope"
PORT = int(os.environ.get("PORT", "7860"))
RAY_PORTS = (6579, 8465)
LEAVES_S, ANSWERS_S = 10, 90


@dataclass
class Trial:
    """What is written down.

    Attributes:
        folder: of everything; short, since it holds sockets.
        sessions: of the machines of the cluster.
    """

    folder: str
    token: str = ""
    sessions: dict[str, int] = field(default_factory=dict)
    postgres: int = 0  # pid
    port: int = PORT

    @property
    def data(self) -> Path:
        return Path(self.folder) / "slimscope"

    def write(self) -> None:
        STATE.parent.mkdir(exist_ok=True)
        STATE.touch(0o600)
        STATE.write_text(json.dumps(asdict(self)))

    def processes(self) -> list[psutil.Process]:
        """Dashboard, supervisor, playground and runs: what works in the folder of the data."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("SLIMSCOPE_DATA_DIR") == str(self.data):
                    found.append(process)
        return found


def last() -> Trial | None:
    """The trial that was started last."""
    if not STATE.exists():
        return None
    trial = Trial(**json.loads(STATE.read_text()))
    return trial if Path(trial.folder).is_dir() else None


def start() -> None:
    """Start everything, and say where it is."""
    found = programs()
    if found is None:
        sys.exit("PostgreSQL is not installed: apt install postgresql (it need not run).")
    install()
    trial = last() or Trial(tempfile.mkdtemp(prefix="slim-"))
    if trial.processes():
        sys.exit(f"It runs: http://127.0.0.1:{trial.port}. To end it: make stop-cluster")
    with suppress(OSError):  # the terminal may be closed
        os.setsid()
    trial.port = PORT
    url = start_postgres(trial, found)
    trial.write()
    cluster = start_ray(trial, url)
    start_dashboard(trial, url, cluster.address)
    print(f"Slimscope is on http://127.0.0.1:{trial.port}, its data in {trial.data}")
    print(f"Ray {cluster.head.version()}: a head and two nodes, at {cluster.address}")
    print("Ray listens on all interfaces, and asks for a token. To end it all: make stop-cluster")


def start_postgres(trial: Trial, found: Path) -> str:
    """The URL of the database, on a server that runs."""
    folder = Path(trial.folder) / "postgres"
    Path(trial.folder).chmod(0o711)  # the server does not run as root
    server = Server(folder, found, ())
    is_new = not folder.exists()
    if is_new:
        folder.mkdir(mode=0o700)
        server.make()
    server.start()
    trial.postgres = server.process.pid
    if is_new:
        server.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
    return server.url.format(DATABASE)


def start_ray(trial: Trial, url: str) -> RayCluster:
    """A cluster that knows the database and the data, with two nodes."""
    folder = Path(trial.folder) / "ray"
    folder.mkdir(exist_ok=True)
    told = {
        "SLIMSCOPE_PYTHON": f"env PYTHONPATH={ROOT} {sys.executable}",
        "SLIMSCOPE_DATABASE_URL": url,
        "SLIMSCOPE_DATA_DIR": str(trial.data),
    }
    trial.data.mkdir(exist_ok=True)
    cluster = RayCluster(folder, told, *RAY_PORTS)
    trial.token, trial.sessions = cluster.token, cluster.sessions
    try:
        cluster.start_head()
        for number in (1, 2):
            cluster.start_node(number)
    finally:
        trial.write()
    return cluster


def start_dashboard(trial: Trial, url: str, address: str) -> None:
    """Start the dashboard, and wait until it answers."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SLIMSCOPE_DATABASE_URL": url,
        "SLIMSCOPE_DATA_DIR": str(trial.data),
        "SLIMSCOPE_ENGINE": "ray",
        "SLIMSCOPE_RAY_ADDRESS": address,
        "SLIMSCOPE_RAY_TOKEN": trial.token,
        "SLIMSCOPE_PORT": str(trial.port),
        "BROWSER": "true",
    }
    log = Path(trial.folder) / "dashboard.log"
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + ANSWERS_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{trial.port}/", trust_env=False)
            return
        time.sleep(0.5)
    sys.exit(f"The dashboard does not answer: see {log}")


def stop() -> None:
    """End what was started; runs go on with the next start."""
    trial = last()
    if trial is None:
        sys.exit("No cluster was started here.")
    ours = trial.processes()
    for process in ours:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(ours, timeout=LEAVES_S)[1]:
        with suppress(psutil.Error):
            process.kill()
    RayCluster(Path(trial.folder) / "ray", {}, sessions=trial.sessions).stop()
    with suppress(psutil.Error):
        server = psutil.Process(trial.postgres)
        if "postgres" in server.name():
            server.send_signal(signal.SIGINT)
            server.wait(LEAVES_S)
    print(f"Ended. Runs and database stay in {trial.folder}; delete it to begin anew.")


if __name__ == "__main__":
    {"start": start, "stop": stop}[sys.argv[1]]()
