"""A lab: a server of PostgreSQL and two machines, each on its host. The test itself looks at the
database through the server's socket, so that no fault of the network hides anything from it."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from backend.queue.artifacts import work_folder
from backend.settings import settings
from backend.store import frames, queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for, reading
from backend.store.states import TERMINAL
from jobs.kind import kinds
from jobs.submit import submit
from tests import postgres
from tests.cluster.hosts.network import Host, Network, missing
from tests.queue.conftest import HOST
from tests.waiting import until

ASKED = "SLIMSCOPE_TEST_HOSTS"
OFFLINE_S, PORT = 5, 7860  # instead of 30 min
LEADER = (
    "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND client_addr IS NOT NULL"
)


@dataclass
class Lab:
    """What a test breaks and watches."""

    network: Network
    folder: Path
    told: dict[str, str]  # to every machine
    db: Host
    a: Host
    b: Host

    def add(self, name: str, number: int) -> Host:
        """Another machine, which knows the server."""
        host = Host(self.network, name, number, self.folder / name, f"boot-{name}", self.told)
        host.knows(self.db)
        return host

    def supervise(self, host: Host, **told: str) -> None:
        """Start the supervisor of a host."""
        host.start("-m", "backend.queue.supervisor", **told)

    def leader(self) -> str:
        """The address whose supervisor works, as the server knows it."""
        with reading() as session:
            return str(session.scalar(text(LEADER)) or "")

    def visit(self, path: str) -> httpx.Response:
        """What the dashboard of `a` answers a guest on `b`; 599 for no answer."""
        with self.b.inside():
            try:
                address = f"http://{self.a.address}:{PORT}{path}"
                return httpx.get(address, timeout=20, trust_env=False)
            except httpx.HTTPError:
                return httpx.Response(599)


def took(holds: Callable[[], object], within_s: float, what: str) -> float:
    """Wait until it holds; print and return the seconds that took."""
    began = time.monotonic()
    until(holds, within_s)
    seconds = time.monotonic() - began
    print(f"{what} after {seconds:.1f} s")
    return seconds


def count(**config: object) -> int:
    """Add a run that counts."""
    return submit("count", config, HOST).id


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
    told = {
        "SLIMSCOPE_ARTIFACTS": str(tmp_path / "artifacts"),
        "SLIMSCOPE_PLUGINS": '["tests.plugins.job_kind"]',
        "SLIMSCOPE_OFFLINE_S": str(OFFLINE_S),
        "SLIMSCOPE_IDLE_EXIT": "600",
    }
    more = {
        "SLIMSCOPE_DATABASE_URL": f"postgresql+psycopg://{postgres.ADMIN}@db.lab/slimscope",
        "SLIMSCOPE_EXAMPLES": "false",
        "SLIMSCOPE_HOST": "0.0.0.0",
        "HF_HUB_OFFLINE": "1",
    }
    with ExitStack() as stack:
        network = Network(stack)
        db = Host(network, "db", 1, tmp_path / "db")
        machines = [
            Host(network, name, n, tmp_path / name, boot, told | more)
            for n, (name, boot) in enumerate(zip("ab", boots, strict=True), 2)
        ]
        for host in machines:
            host.knows(db)
        with db.inside():
            listens = f"listen_addresses={db.address}"
            server = stack.enter_context(postgres.server((*postgres.QUICK, listens)))
        with (server.folder / "data" / "pg_hba.conf").open("a") as trusted:
            trusted.write("host all all 10.77.0.0/24 trust\n")
        server.execute("SELECT pg_reload_conf()", "CREATE DATABASE slimscope")
        told |= {"SLIMSCOPE_DATABASE_URL": server.url.format("slimscope")}
        for name, value in (told | {"SLIMSCOPE_DATA_DIR": str(tmp_path / "test")}).items():
            monkeypatch.setenv(name, value)
        settings.cache_clear(), kinds.cache_clear()
        upgrade()
        yield Lab(network, tmp_path, told | more, db, *machines)
        engine_for(settings().url).dispose()
    for cached in (engine_for, settings, kinds):
        cached.cache_clear()
    for log in tmp_path.glob("[ab]/log"):  # stands below the report of a test that fails
        print(f"--- {log.parent.name}\n{log.read_text()[-2000:]}")
