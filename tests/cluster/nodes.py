"""A Ray cluster on one machine: a head without processors, and nodes with one each, on addresses of
the loopback interface. Ray listens on all interfaces all the same, so it always has a token.

Ray is installed in an environment of its own, which is made when it is first needed.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from backend.queue.engines.ray import RayHead, RayHeadError

ROOT = Path(__file__).parents[2]
PLACE = "SLIMSCOPE_TEST_RAY_VENV"  # another folder for the environment
RAY = "ray[default]>=2.60,<3"
HEAD_IP, NODE_IP = "127.0.0.2", "127.0.1.{}"
START_S = 90
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


def installed() -> Path | None:
    """The program `ray`; None if it is not installed."""
    program = _environment() / "bin" / "ray"
    return program if program.exists() else None


def _environment() -> Path:
    return Path(os.environ.get(PLACE, ROOT / ".cluster" / "ray"))


def install() -> Path:
    """The program `ray`, installed if it is not: some 300 MB."""
    if (found := installed()) is None:
        print(f"Installing {RAY} in {_environment()}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", _environment()], check=True)
        pip = [_environment() / "bin" / "python", "-m", "pip", "install", "--quiet", RAY]
        subprocess.run(pip, check=True)
        found = _environment() / "bin" / "ray"
    return found


@dataclass
class RayCluster:
    """A cluster whose processes are known by their session, one of each machine.

    Args:
        folder: for its files; its path has to be short, since it holds sockets.
        told: what the environment of the nodes says to jobs.
    """

    folder: Path
    told: Mapping[str, str]
    port: int = 6479
    dashboard: int = 8365
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    sessions: dict[str, int] = field(default_factory=dict)  # head, or the number of a node

    @property
    def address(self) -> str:
        """Of the HTTP interface of the head."""
        return f"http://{self.ip('head')}:{self.dashboard}"

    def ip(self, name: str) -> str:
        """The address of a machine."""
        return HEAD_IP if name == "head" else NODE_IP.format(name)

    def entered(self, name: str) -> list[str]:
        """The beginning of a command line that is carried out on a machine."""
        return []

    @property
    def head(self) -> RayHead:
        return RayHead(self.address, self.token)

    def start_head(self) -> None:
        """Start the head, and wait until it answers."""
        self._start(
            "head",
            "--head",
            "--num-cpus=0",
            f"--port={self.port}",
            f"--node-ip-address={self.ip('head')}",
            f"--dashboard-host={self.ip('head')}",
            f"--dashboard-port={self.dashboard}",
            f"--temp-dir={self.folder}",
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.head.nodes()
            except (RayHeadError, httpx.HTTPError):
                assert time.monotonic() < deadline, "the head does not answer"
                time.sleep(0.5)
            else:
                return

    def start_node(self, number: int) -> None:
        """Start a machine with one processor."""
        self._start(
            str(number),
            f"--address={self.ip('head')}:{self.port}",
            "--num-cpus=1",
            f"--node-ip-address={self.ip(str(number))}",
        )

    def _start(self, name: str, *given: str) -> None:
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        environment = {
            **inherited,
            **self.told,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_JOB_START_TIMEOUT_SECONDS": "31536000",  # else what waits fails
        }
        line = [*self.entered(name), str(install()), "start", "--disable-usage-stats", *given]
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                line, env=environment, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        assert started.wait(START_S) == 0, (self.folder / f"{name}.log").read_text()
        self.sessions[name] = started.pid

    def lose(self, name: str) -> None:
        """Kill a machine as a power cut does, but for the processes of its jobs, which are left."""
        session = self.sessions.pop(name)
        for pid in psutil.pids():
            with suppress(OSError):
                if os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End everything, with the processes of jobs."""
        sessions = {*self.sessions.values()}
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                is_ray = any("ray" in part for part in process.cmdline())  # and no later process
                if is_ray and os.getsid(process.pid) in sessions:
                    for child in process.children(recursive=True):
                        child.kill()
                    process.kill()
        self.sessions.clear()


if __name__ == "__main__":
    install()
