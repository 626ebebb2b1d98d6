"""A PostgreSQL server of the tests' own: `python -m tests.postgres COMMAND …` runs a command with
one, and `make test-postgres` the tests of what knows the database.

It lives in a temporary folder, listens on a Unix socket in it and on no network, and waits for no
disk. A server does not run as root: then it belongs to nobody.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, text

SERVER = "SLIMSCOPE_TEST_POSTGRES"  # URL of a server, without a database
ADMIN = "postgres"
ALWAYS = ("listen_addresses=", "max_connections=200")
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")  # waits for no disk
START_S = 60


def programs() -> Path | None:
    """The folder of the newest server that is installed; None without one."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    found = shutil.which("initdb")
    return folders[-1] if folders else Path(found).parent if found else None


def _as_nobody() -> dict[str, object]:
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Server:
    """A server in a folder, which can be stopped, frozen and started again."""

    def __init__(self, folder: Path, programs: Path, options: Sequence[str]) -> None:
        self.folder, self._programs, self._options = folder, programs, options
        self.url = f"postgresql+psycopg://{ADMIN}@/{{}}?host={folder}"
        self.process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make the files of the server."""
        if who := _as_nobody():
            os.chown(self.folder, int(str(who["user"])), int(str(who["group"])))
        line = ["initdb", "-D", "data", "-U", ADMIN, "-A", "trust", "-E", "UTF8", "--no-sync"]
        self._run(*line, "--locale=C.UTF-8")

    def _run(self, program: str, *given: str) -> None:
        line = [str(self._programs / program), *given]
        done = subprocess.run(line, cwd=self.folder, capture_output=True, text=True, **_as_nobody())
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        line = [str(self._programs / "postgres"), "-D", "data", "-k", str(self.folder)]
        line += [part for option in (*ALWAYS, *self._options) for part in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                line, cwd=self.folder, stdout=log, stderr=log, **_as_nobody()
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        line = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(line).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once, as a crash does (SIGQUIT), or with all that is connected (SIGINT)."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_S)
            self.process = None

    def execute(self, *statements: str) -> None:
        """Execute statements outside of transactions."""
        engine = create_engine(self.url.format("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()


@contextmanager
def server(options: Sequence[str] = QUICK) -> Iterator[Server]:
    """A server that runs, and is gone afterward.

    Args:
        options: of the server, name=value.
    """
    found = programs()
    assert found is not None, "There is no PostgreSQL: apt install postgresql"
    folder = Path(tempfile.mkdtemp(prefix="slimscope-postgres-"))
    made = Server(folder, found, options)
    try:
        made.make()
        made.start()
        yield made
    finally:
        made.stop()
        with suppress(OSError):
            shutil.rmtree(folder)


@contextmanager
def database(url: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database on a server, deleted afterward.

    Args:
        url: of the server, with {} in place of the database.
    """
    name, engine = (
        f"test_{uuid4().hex[:12]}",
        create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT"),
    )
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        yield url.format(name)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


def main() -> int:
    """Run a command with a server; 0 without doing anything where none is installed."""
    if programs() is None:
        print("PostgreSQL is not installed, so nothing was tested on it: apt install postgresql")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and stop the server
    with server() as running:
        return subprocess.run(sys.argv[1:], env=os.environ | {SERVER: running.url}).returncode


if __name__ == "__main__":
    sys.exit(main())
