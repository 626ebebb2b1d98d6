"""Every page shows the same, whether the tables are in a file or on a server."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import update

from backend.backup.databases import move_database
from backend.metric_key import MetricKey
from backend.queue import scheduling
from backend.settings import settings
from backend.store import frames, queries, tensors
from backend.store.dialects.postgresql import PostgreSQL
from backend.store.session import engine_for
from backend.store.tables import Job
from jobs.record import record
from tests.fork_server import elsewhere
from tests.ui.conftest import move_to_now
from tests.ui.lab import asked
from ui.pages.compare import page as compare
from ui.pages.home import page as home
from ui.pages.playground import page as playground
from ui.pages.run import page as run
from ui.pages.runs import page as runs
from ui.search import search_runs

RUNS = ("sds-0001", "sds-0002", "sds-0003", "sds-0004", "sds-0005")
FOLDER, URL = "SLIMSCOPE_DATA_DIR", "SLIMSCOPE_DATABASE_URL"
ERROR = MetricKey("error", "sds", axis="block")


def shown(place: Mapping[str, str], moment: int) -> dict[str, str]:
    """What pages and queries return, at one moment, in a process that has read nothing yet."""
    os.environ.update(place)
    settings.cache_clear()
    time.time_ns = lambda: moment
    PostgreSQL.now_ms = lambda self, session: None  # the time of this machine
    found: dict[str, object] = {
        "home": home.draw(None, asked()),
        "playground": playground.draw(asked()),
        "compare": compare.draw(asked(runs="sds-0001,sds-0002")),
        **{f"runs {by}": runs.draw(asked(sort=by, dir="asc")) for by in ("name", "run", "ppl")},
        "names": search_runs("sds"),
        "cursor": queries.cursor(),
        "mark": queries.figures_mark(),
        "queued": [job.run for job in scheduling.queued()],
        "with weights": with_weights(),
        "results": queries.results(RUNS),
        "bytes": queries.model_bytes([1, 2]),
    }
    for name in RUNS:
        asking = asked(id=name)
        found |= {
            f"{name} page": run.draw(None, asking),
            f"{name} curves": run.draw_curves(asking),
            f"{name} record": record(name),
            f"{name} points": frames.curves(name).to_csv(),
            f"{name} spans": frames.spans(int(name[-1])),
            f"{name} tensors": frames.tensor_table(name).to_csv(),
            f"{name} profiles": frames.profile_names(name).to_csv(),
        }
    first = queries.tensor_rows(1)[0]["tensor"]
    found["outline"] = frames.outline(2, ERROR, frames.spans(2)[ERROR], 2)
    found["histograms"] = [str(vars(each)) for each in tensors.tensor_snapshots(1, first)]
    found["values"] = [each.values.tolist() for each in tensors.profiles(1, first)]
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in found.items()}


def with_weights() -> list[str]:
    return [job.run for job in queries.runs_with_weights()]


def set_state(url: str, state: str) -> None:
    """Lets sds-0002 run, or wait: what runs is not moved."""
    with engine_for(url).begin() as connection:
        connection.execute(update(Job).where(Job.id == 2).values(state=state))


def test_every_page_shows_the_same(
    on_server: str, data_dir: Path, seed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, "")
    settings.cache_clear()
    shutil.copytree(seed_folder, data_dir)
    move_to_now()
    file = settings().url
    set_state(file, "queued")
    engine_for(file).dispose()
    move_database(on_server)
    for url in (file, on_server):
        set_state(url, "running")
        engine_for(url).dispose()
    place, moment = {FOLDER: str(data_dir)}, time.time_ns()
    in_file = elsewhere(shown, place | {URL: ""}, moment)
    on_it = elsewhere(shown, place | {URL: on_server}, moment)
    assert [name for name in in_file if in_file[name] != on_it[name]] == []
    assert "half way" in in_file["runs name"] and "perplexity" in in_file["results"]
