"""Upgrades: what each release has left behind goes on with this version, and a version to come
takes over from this one while runs work. `releases/` holds the former: see `release.py`."""

import os
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from backend.backup.reading import restore_backup
from backend.backup.writing import write_backup
from backend.checkpoints import is_whole
from backend.drafters.checkpoint import Amphista
from backend.queue import service
from backend.queue.artifacts import run_folder
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import frames, queries
from backend.store.migrate import other_version, upgrade
from backend.store.session import engine_for
from backend.store.states import State
from backend.store.tables import Table
from jobs.kind import kinds
from jobs.submit import submit
from tests import postgres
from tests.fork_engine import ForkEngine, fork_module
from tests.queue.conftest import HOST, queue, running
from tests.shell import slimscope
from tests.store.next_version import next_version
from tests.store.release import RUNS, STEPS
from tests.waiting import until
from ui.health import StatusReader

__all__ = ["queue"]
RELEASES = Path(__file__).with_name("releases")


def counted(run: int) -> list[float]:
    curves = frames.curves(run)
    return sorted(curves[curves["family"] == "count"]["value"])


@pytest.fixture(params=sorted(file.name for file in RELEASES.glob("*.tar.xz")))
def left(
    request: pytest.FixtureRequest,
    data_dir: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The data folder that a release has left; where there is a server, its tables are there."""
    data_dir.mkdir()
    with tarfile.open(RELEASES / request.param) as archive:
        archive.extractall(data_dir, filter="data")
    if database_url:
        lines = (data_dir / "dump.sql").read_text().splitlines(keepends=True)
        with create_engine(database_url).connect() as connection:
            raw = connection.connection.driver_connection
            raw.execute("".join(line for line in lines if line[0] != "\\"))
            raw.commit()
    monkeypatch.setenv("SLIMSCOPE_PLUGINS", '["tests.plugins.job_kind"]')
    settings.cache_clear(), kinds.cache_clear()


@pytest.mark.no_tables
def test_what_a_release_has_left_goes_on(left: None) -> None:
    upgrade()
    with engine_for(settings().url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    pruned, drafter, failed, at_work, waiting = ids = [*range(1, len(RUNS) + 1)]
    said = {run: [r.value for r in queries.results([run])] for run in ids}
    assert [job.kind for job in queries.jobs()][::-1] == [kind for kind, _ in RUNS]
    service.resume([failed], HOST)
    loop = SupervisorLoop(ForkEngine(1))
    until(lambda: loop.turn() is False, 60)
    assert {queries.job(run).state for run in ids} == {State.SUCCEEDED}
    for run in (failed, at_work, waiting):
        assert counted(run) == [*range(int(RUNS[run - 1][1]["steps"]))]
    assert [len(queries.attempts(run)) for run in ids] == [1, 1, 2, 2, 1]
    resumed = queries.attempts(at_work)[1].resumed_from
    assert resumed and int(resumed.removeprefix("step-")) >= STEPS - 1
    for run in (pruned, drafter):
        assert [r.value for r in queries.results([run])] == said[run] != []
    folder = run_folder(queries.job(pruned).run) / "model"
    assert is_whole(folder)
    Amphista.load(run_folder(queries.job(drafter).run) / "drafter")


def on_server(program: str, url: str, *given: str) -> None:
    """Run a program of PostgreSQL on a database."""
    at, folder = make_url(url), postgres.programs()
    place = ["--host", str(at.query["host"]), "--username", postgres.ADMIN]
    line = [str(folder / program), *place, f"--dbname={at.database}", *given]
    subprocess.run(line, check=True)


def test_the_next_version_takes_over_while_runs_work(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, dump = next_version(tmp_path / "next"), str(tmp_path / "before.dump")
    here, log = settings().database_url, queue / "supervisor.log"
    monkeypatch.setenv("SLIMSCOPE_IDLE_EXIT", "600")
    ours = fork_module("backend.queue.supervisor", log)
    at_work = submit("count", {"steps": 60, "pause": 0.1}, HOST).id
    until(running(at_work, 2))
    waiting = submit("count", {"steps": 3, "pause": 0}, HOST).id
    if here:
        on_server("pg_dump", here, "--format=custom", f"--file={dump}")
    else:
        write_backup(tmp_path / "before.tar")
    migrate = "from backend.store.migrate import upgrade; upgrade()"
    line = [sys.executable, "-c", migrate]
    subprocess.run(line, env=told, cwd=told["PYTHONPATH"], check=True)
    until(lambda: ours.poll() is not None, 20)
    assert ours.poll() == 0 and "has migrated the database" in log.read_text()
    assert (queries.job(at_work).state, queries.job(waiting).state) == ("running", "queued")
    assert StatusReader().read()[1] == other_version() != ""  # on all pages, and by /healthz
    refused = slimscope("list")
    assert refused.returncode == 2 and "another version of Slimscope" in refused.stderr
    line = [sys.executable, "-m", "backend.queue.supervisor"]
    theirs = subprocess.Popen(line, env=told, cwd=told["PYTHONPATH"])
    try:
        until(lambda: {queries.job(run).state for run in (at_work, waiting)} == {"succeeded"})
    finally:
        theirs.kill()
        theirs.wait()
    assert [len(queries.attempts(run)) for run in (at_work, waiting)] == [1, 1]
    assert counted(at_work) == [*range(60)] and counted(waiting) == [*range(3)]
    place = postgres.database(os.environ[postgres.SERVER]) if here else nullcontext("")
    with place as empty, monkeypatch.context() as back:
        back.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path / "back"))
        back.setenv("SLIMSCOPE_DATABASE_URL", empty)
        settings.cache_clear()
        if here:
            on_server("pg_restore", empty, "--no-owner", dump)
        else:
            restore_backup(tmp_path / "before.tar")
        assert not other_version()
        assert queries.job(at_work).state == ("running" if here else "queued")
        loop = SupervisorLoop(ForkEngine(1))
        until(lambda: loop.turn() is False, 60)
        assert {queries.job(run).state for run in (at_work, waiting)} == {"succeeded"}
        assert counted(at_work) == [*range(60)] and counted(waiting) == [*range(3)]
        engine_for(settings().url).dispose()
    settings.cache_clear()
