"""What every test shares: no hub, no telemetry, a data folder of its own."""

import gc
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck
from sqlalchemy import make_url
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # the same sums everywhere, and files of tests run side by side

from backend import limited
from backend.kernels.library import kernels_or_none
from backend.queue import service
from backend.queue.launcher import SERVING
from backend.settings import Settings, settings
from backend.store import migrate
from backend.store.copies import has_file
from backend.store.session import engine_for
from tests import fork_server, postgres
from tests.flushing import flush_nothing
from tests.fork_server import FreshRoot, fork_roots

ALL = os.environ.get("SLIMSCOPE_TEST_ALL") == "1"  # `make test-all`: many examples and rounds
ATTACK = 5 if ALL else 1  # factor on the examples of tests that choose their own number
# Tests assert no times: a busy machine would fail a slow example. What a fixture has made is meant
# to be the same for all examples.
hypothesis.settings.register_profile(
    "untimed",
    max_examples=300 if ALL else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")
flush_nothing()
fork_roots()
gc.disable()  # until the tests are collected: it is a third of what their imports cost

Given = Callable[..., None]


def representatives(cases: Iterable[str], *named: str) -> list[str]:
    """All cases in `make test-all`; otherwise the named ones, of which each stands for several."""
    return [*cases] if ALL else [*named]


# Of the shell's own settings: the place of what was set up, and those of the tests.
KEPT = ("SLIMSCOPE_CACHE_DIR", "SLIMSCOPE_TEST_")


def pytest_configure(config: pytest.Config) -> None:
    """Whatever else the shell sets for Slimscope is not for the tests. Several processes of tests
    have one to fork from."""
    for name in [*os.environ]:
        if name.upper().startswith("SLIMSCOPE_") and not name.startswith(KEPT):
            del os.environ[name]
    if hasattr(config, "workerinput"):
        if fork_server.ADDRESS in os.environ:
            fork_server.use_shared_server()
    elif config.getoption("numprocesses", None):
        fork_server.share_server()


BROWSER = "tests/browser/"
BEGIN_RUNS = {
    f"{BROWSER}test_{name}.py"
    for name in ("first_run", "no_external", "playground", "queue", "upgrade")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests come first: they take the longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(BROWSER))


class WholeFiles(LoadScopeScheduling):
    """Gives a process of tests whole files, and those that need a browser to two of them: what
    looks at finished runs to one, and what begins runs to the other."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return f"{BROWSER}{file in BEGIN_RUNS}" if file.startswith(BROWSER) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    return WholeFiles(config, log)


def pytest_collection_finish() -> None:
    """What is imported by now stays; the collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def no_supervisor() -> Iterator[None]:
    """Changing the queue starts no process; a test that wants a supervisor wakes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "wake_supervisor", lambda: None)
        patch.setattr(SERVING, "wake", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def tables_made_once() -> Iterator[None]:
    """The migrations of an empty database are run once; then what they have made is copied."""
    made: dict[str, sqlite3.Connection] = {}  # revision -> a database with its tables
    run = migrate.run_migrations

    def repeat() -> None:
        place, revision = engine_for(settings().url).url, migrate.newest_revision()
        if not has_file() or migrate.current_revision() is not None:
            return run()
        if revision not in made:
            run()
        with closing(sqlite3.connect(str(place.database))) as raw:
            raw.execute("PRAGMA synchronous=OFF")
            if revision in made:
                made[revision].backup(raw)
            else:
                made[revision] = sqlite3.connect(":memory:", check_same_thread=False)
                raw.backup(made[revision])
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "run_migrations", repeat)
        yield


@pytest.fixture
def fresh_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limited children are forked from a fresh process, as in production."""
    monkeypatch.setattr(limited, "_Root", FreshRoot)
    monkeypatch.setattr(limited, "_roots", [])
    monkeypatch.setattr("backend.models.foreign_tokenizer._bases", [])
    yield
    for root in limited._roots:
        root.abandon()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A job that a test runs in this process takes as many threads as it likes; the next not."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    yield


@pytest.fixture
def two_threads(one_thread: None) -> None:
    """PyTorch takes two threads in this test."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def migrated_database() -> Iterator[str]:
    """The name of a database with tables, to be copied, on the server of `make test-postgres`."""
    url = os.environ[postgres.SERVER]
    with postgres.database(url) as made:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLIMSCOPE_DATABASE_URL", made)
            settings.cache_clear()
            migrate.upgrade()
        settings.cache_clear()
        engine_for(made).dispose()  # a database in use cannot be copied
        yield str(make_url(made).database)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test has its tables: in its data folder; with `make test-postgres`, in a database of
    its own on a server."""
    if postgres.SERVER not in os.environ:
        yield ""
        return
    if mark := request.node.get_closest_marker("sqlite"):
        pytest.skip(f"SQLite: {mark.args[0]}")
    empty = request.node.get_closest_marker("no_tables") is not None
    template = "template1" if empty else request.getfixturevalue("migrated_database")
    with postgres.database(os.environ[postgres.SERVER], template) as url:
        yield url
        engine_for.cache_clear()


@pytest.fixture
def on_server(database_url: str) -> str:
    """The URL of the database, for a test that several machines have to do with."""
    if not database_url:
        pytest.skip("on PostgreSQL alone: make test-postgres")
    return database_url


@pytest.fixture
def data_dir(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data folder that this process and its children use."""
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SLIMSCOPE_DATABASE_URL", database_url)
    settings.cache_clear()
    yield tmp_path / "data"
    settings.cache_clear()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    """Sets SLIMSCOPE_ variables: `given(SLOTS="2")`."""

    def change(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"SLIMSCOPE_{name}", value)
        settings.cache_clear()

    yield change
    settings.cache_clear()


@pytest.fixture
def own_cache(data_dir: Path, tmp_path: Path, given: Given) -> Path:
    """An empty cache folder, in which models are prepared. The native code is that of the usual
    one."""
    kernels_or_none()
    given(CACHE_DIR=str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def current(data_dir: Path) -> Settings:
    return settings()


@pytest.fixture
def tables(current: Settings) -> Iterator[Settings]:
    """The same, with tables without a row."""
    migrate.upgrade()
    yield current
    engine_for.cache_clear()


@pytest.fixture(scope="session")
def plain_transformers() -> Iterator[Callable[..., dict[str, float]]]:
    """Asks a process that knows transformers, and nothing of Slimscope: `plain_transformers.py`."""
    channel, other_end = fork_server.FORKS.Pipe()
    with channel, other_end:
        process = fork_server.FORKS.Process(target=fork_server.serve_plain, args=(other_end,))
        process.start()
        other_end.close()

        def ask(**request: object) -> dict[str, float]:
            channel.send(request)
            answer: dict[str, float] = channel.recv()
            return answer

        yield ask
    process.join()
