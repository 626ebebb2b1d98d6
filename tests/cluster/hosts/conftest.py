"""A lab: a server of PostgreSQL and two machines, each on its host. The test itself looks at the
database through the server's socket, so that no fault of the network hides anything from it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from backend.queue.folders import work_folder
from backend.settings import settings
from backend.store import frames, queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for, reading
from backend.store.states import TERMINAL
from jobs.kind import kinds
from jobs.submit import submit
from tests import postgres
from tests.cluster.hosts.network import NAMES, Host, Network, missing
from tests.queue.conftest import HOST

ASKED = "SLIMSCOPE_TEST_HOSTS"
DATABASE, PORT = "slimscope", 7860
ESTABLISHED = "01"  # in /proc/net/tcp
OFFLINE_S, LEAVING_S = 5, 35  # instead of 30 min and 60 s
OVERDUE_S = 4.0  # instead of 20 s: `sooner`
SUPERVISE = (
    f"from backend.queue import supervisor as s; s.LEAVING_MS = {1000 * LEAVING_S}; s.main()"
)
LEADER = (
    "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND client_addr IS NOT NULL"
)


@dataclass
class Lab:
    """What a test breaks and watches."""

    network: Network
    server: postgres.Server
    db: Host
    a: Host
    b: Host

    def supervise(self, host: Host, **told: str) -> None:
        """Start the supervisor of a host."""
        host.start("-c", SUPERVISE, **told)

    def leader(self) -> str:
        """The address whose supervisor works, as the server knows it."""
        with reading() as session:
            return str(session.scalar(text(LEADER)) or "")

    def count(self, **config: object) -> int:
        """Add a run that counts."""
        return submit("count", config, HOST).id

    def at(self, path: str) -> str:
        """An address of the dashboard of `a`."""
        return f"http://{self.a.address}:{PORT}{path}"

    def visit(self, path: str) -> httpx.Response:
        """What a guest on `b` gets; 599 for no answer."""
        with self.b.inside():
            try:
                return httpx.get(self.at(path), timeout=20, trust_env=False)
            except httpx.HTTPError:
                return httpx.Response(599)

    def connections(self, host: Host) -> int:
        """How many connections of a host the dashboard of `a` holds."""
        far = "".join(f"{int(part):02X}" for part in reversed(host.address.split(".")))
        lines = Path(f"/proc/{self.a.pid}/net/tcp").read_text().splitlines()[1:]
        pairs = [line.split()[1:4] for line in lines]
        return sum(
            near.endswith(f":{PORT:04X}") and other.startswith(far) and state == ESTABLISHED
            for near, other, state in pairs
        )


def until(holds: Callable[[], object], within_s: float) -> float:
    """Wait until it holds, and fail after that time; the seconds that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"it did not come to be within {within_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - began


def steps(run: int) -> int:
    """How many checkpoints a run has made."""
    return len([*work_folder(queries.job(run).run).glob("step-*")])


def counted(run: int) -> list[float]:
    """The points of a run."""
    curves = frames.curves(run)
    return sorted(curves[curves["family"] == "count"]["value"])


def has_ended(run: int) -> bool:
    return queries.job(run).state in TERMINAL


@pytest.fixture
def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    """Two machines with a boot of their own, or, where a test asks for it, containers of one."""
    if ASKED not in os.environ:
        pytest.skip("takes minutes: make test-hosts")
    if why := missing() or ("" if postgres.programs() else "PostgreSQL is not installed"):
        pytest.skip(why)
    boots = getattr(request, "param", ("boot-a", "boot-b"))
    shared = {
        "SLIMSCOPE_DATABASE_URL": f"postgresql+psycopg://{postgres.ADMIN}@db.{NAMES}/{DATABASE}",
        "SLIMSCOPE_ARTIFACTS": str(tmp_path / "artifacts"),
        "SLIMSCOPE_PLUGINS": '["tests.plugins.job_kind", "tests.cluster.hosts.sooner"]',
        "SLIMSCOPE_IDLE_EXIT": "600",
        "SLIMSCOPE_OFFLINE_S": str(OFFLINE_S),
        "SLIMSCOPE_EXAMPLES": "false",
        "SLIMSCOPE_HOST": "0.0.0.0",
        "SLIMSCOPE_HOST_TOKEN": "a-token-for-the-tests",
        "SLIMSCOPE_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    network = Network()
    made = [Host(network, "db", 1, tmp_path / "db")]
    for number, (name, boot) in enumerate(zip("ab", boots, strict=True), 2):
        own = {"SLIMSCOPE_DATA_DIR": str(tmp_path / name / "data")}
        made.append(Host(network, name, number, tmp_path / name, boot, shared | own))
        made[-1].knows(made[0])
    db, a, b = made
    listens = f"listen_addresses={db.address}"
    with ExitStack() as stack:
        with db.inside():
            server = stack.enter_context(postgres.server((*postgres.QUICK, listens)))
        with (server.folder / "data" / "pg_hba.conf").open("a") as trusted:
            trusted.write("host all all 10.77.0.0/24 trust\n")
        server.execute("SELECT pg_reload_conf()", f"CREATE DATABASE {DATABASE}")
        monkeypatch.setenv("SLIMSCOPE_DATABASE_URL", server.url.format(DATABASE))
        monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path / "test"))
        for name in ("SLIMSCOPE_ARTIFACTS", "SLIMSCOPE_PLUGINS", "SLIMSCOPE_OFFLINE_S"):
            monkeypatch.setenv(name, shared[name])
        settings.cache_clear(), kinds.cache_clear()
        upgrade()
        yield Lab(network, server, db, a, b)
        for host in made:
            host.lose()
        engine_for(settings().url).dispose()
        engine_for.cache_clear(), settings.cache_clear(), kinds.cache_clear()
    network.close()


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """What the hosts have said stands below the report of a test that failed."""
    yield
    for log in sorted(tmp_path.glob("[ab]/log")):
        print(f"--- {log.parent.name}\n{log.read_text()[-3000:]}")
