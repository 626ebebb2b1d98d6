"""What a release leaves behind, made by its own code, and kept in `releases/` for as long as later
versions have to open it. With the code of the release:

    python -m tests.postgres python -m tests.store.release tests/store/releases/0001.tar.xz

A data folder as a power cut leaves it: runs that have succeeded, one with a model and one with a
drafter, one that has failed, one at work with its checkpoints, one that waits; and in `dump.sql`
the same on PostgreSQL.
"""

import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import psutil
from sqlalchemy import make_url, text

from backend.queue.actor import Actor
from backend.queue.artifacts import work_folder
from backend.queue.supervisor import shrink_log
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for
from backend.store.states import TERMINAL
from jobs.submit import submit
from tests import postgres
from tests.waiting import until

RUNS = (
    ("sds", {"model": "toy", "segments": 4, "context": 64, "windows": 4, "threads": 1}),
    (
        "amphista",
        {
            "model": "toy",
            "answers": 24,
            "heldout": 8,
            "answer_tokens": 16,
            "minutes": 0,
            "steps": 8,
            "batch": 4,
            "threads": 1,
            "precision": "float32",
            "draft_vocabulary": 64,
        },
    ),
    ("count", {"steps": 4, "pause": 0, "fails_at": 2}),
    ("count", {"steps": 12, "pause": 1}),
    ("count", {"steps": 3, "pause": 0}),
)
AT_WORK, STEPS = 3, 3
KEPT = ("results.db", "artifacts", "dump.sql")


def work() -> None:
    """Let the runs come as far as they shall, and end all processes at once."""
    upgrade()
    ids = [submit(kind, config, Actor("mira", "host")).id for kind, config in RUNS]
    run = ids[AT_WORK]
    until(lambda: (work_folder(queries.job(run).run) / f"step-{STEPS - 1}").exists(), 300)
    (attempt,) = queries.attempts(run)
    process = psutil.Process((attempt.engine_ref or {})["pid"])
    for each in (process.parent(), process):  # the supervisor first
        each.kill()
    assert all(queries.job(n).state in TERMINAL for n in ids[:AT_WORK])
    with engine_for(settings().url).begin() as connection:
        for table in ("tensor_profiles", "tensor_snapshots"):  # of one layer: the file is kept
            connection.execute(text(f"DELETE FROM {table} WHERE tensor NOT LIKE '%.0.%q_proj%'"))
    shrink_log()


def main(file: Path) -> None:
    """Pack what is left, on a file and on a server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        postgres.database(os.environ[postgres.SERVER]) as url,
    ):
        root = Path(folder)
        for place, data in ((url, root / "server"), ("", root / "file")):
            own = {"SLIMSCOPE_DATA_DIR": str(data), "SLIMSCOPE_DATABASE_URL": place}
            told = {**os.environ, **own, "SLIMSCOPE_PLUGINS": '["tests.plugins.job_kind"]'}
            subprocess.run([sys.executable, "-m", __spec__.name], env=told, check=True)
        with closing(sqlite3.connect(root / "file" / "results.db")) as database:
            database.execute("VACUUM")
        at = make_url(url)
        line = ["pg_dump", "--no-owner", "--inserts", "--host", str(at.query["host"])]
        dump = subprocess.run(
            [*line, "-U", postgres.ADMIN, str(at.database)], stdout=subprocess.PIPE, check=True
        )
        (root / "file" / "dump.sql").write_bytes(dump.stdout)
        with tarfile.open(file, "w:xz") as archive:
            for name in KEPT:
                archive.add(root / "file" / name, name)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if sys.argv[1:] else work()
