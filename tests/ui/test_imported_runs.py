"""Whatever people, models and run files say is refused with a sentence, or shown as text."""

import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import gradio as gr
import pytest
from sqlalchemy import text

from backend.backup import examples
from backend.backup import writing as layout
from backend.backup.single import import_run
from backend.backup.writing import ROWS, SourceFile, write_archive
from backend.errors import BackupError, SlimscopeError
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import Job
from jobs import sweep
from jobs.evaluation.kind import MODEL
from jobs.imported import check_row
from jobs.operations.runs import runs_text
from jobs.record import record, summary
from tests.conftest import ATTACK, representatives
from tests.queue.conftest import HOST
from tests.ui.conftest import HOSTILE
from tests.ui.lab import asked, job, result, store
from ui.pages import pages
from ui.pages.compare import page as compare
from ui.pages.home import page as home
from ui.pages.playground import page as playground
from ui.pages.run import page as run
from ui.pages.runs import page as runs
from ui.pages.weights import groups, histograms
from ui.runs.weights import weights_of

EXAMPLES, MOST_SHOWN = 60 * ATTACK, 2 * ATTACK - 1
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**53,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc",
    "\0",
    "<img src=x onerror=alert(1)>",
    "{{7*7}}",
    "a" * 300_000,
    [],
    [1],
    [[1]],
    ["x"],
    {},
    {"x": 1},
    {"x": {"x": "y"}},
    "2:4",
    "succeeded",
    "running",
    "AAAA",
    "\ud800",
)
ONE_OF_EACH_KIND = [name for name in examples.bundled() if not name.endswith("-2")]
KEPT_TENSORS = 3  # of a bundled run: enough for every page


class Bundle:
    """A bundled run: its unpacked folder, and the lines of its rows."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder, self.lines = folder, unpacked(name, folder)


def unpacked(name: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of a bundled run without most of its tensors; its files are in the folder."""
    file = examples.bundled()[name]
    with lzma.open(file) as packed, tarfile.open(fileobj=packed) as bundle:
        bundle.extractall(folder, filter="data")
    (folder / "manifest.json").unlink()
    lines = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    kept = sorted({line["tensor"] for line in lines if "tensor" in line})[:KEPT_TENSORS]
    return [line for line in lines if "tensor" not in line or line["tensor"] in kept]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: Bundle(name, tmp_path_factory.mktemp(name)) for name in examples.bundled()}


@pytest.fixture
def target(tables: Settings) -> Path:
    return tables.root


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The places inside of a JSON value, itself first."""
    yield ()
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value[:3]) if isinstance(value, list) else parts
    for name, part in parts:
        yield from ((name, *rest) for rest in places(part))


def changed(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    """The value with another one at a place."""
    if not place:
        return odd
    copy = value.copy()
    copy[place[0]] = changed(value[place[0]], place[1:], odd)
    return copy


def mutated(lines: list[dict[str, Any]], chance: Random) -> list[Any]:
    """The lines of a run file with another value at one place. Each table is as likely."""
    table = chance.choice(sorted({line["table"] for line in lines}))
    number = chance.choice([n for n, line in enumerate(lines) if line["table"] == table])
    place = chance.choice([*places(lines[number])])
    return [
        *lines[:number],
        changed(lines[number], place, chance.choice(ODD)),
        *lines[number + 1 :],
    ]


def drawn_everywhere(job: Job) -> None:
    """What every page, list and record makes of a run."""
    name = job.run
    json.dumps(record(name), allow_nan=False)
    runs_text([summary(job) for job in queries.jobs()])
    for draw in (partial(home.draw, None), runs.draw, playground.draw):
        draw(asked(run=name))
    for draw in (partial(run.draw, None), run.draw_curves):
        draw(asked(id=name))
    compare.draw(asked(runs=f"{name},{name}"))
    histograms.packed_of(name)
    if weights := weights_of(name):
        tensor, names = next(iter(weights.tensors)), ",".join(histograms.PROFILES)
        for query in ({"names": names}, {"spot": "1,1"}):
            histograms.packed_profiles(weights, tensor, query)
        groups.packed_groups(weights, tensor, "")
    for page in pages():
        for chart in page.charts.values():
            query = {chart.runs or "run": name}
            with suppress(SlimscopeError):  # a chart of several runs, or of another kind
                chart.draw(gr.Request(query_params=query, headers={}))


def imported(bundle: Bundle, lines: list[Any], folder: Path) -> Job:
    """The bundled run with these rows."""
    source = bundle.folder
    (folder / ROWS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    files = [SourceFile(ROWS, folder / ROWS, (folder / ROWS).stat().st_size)] + [
        SourceFile(x.relative_to(source).as_posix(), x, x.stat().st_size)
        for x in (source / "artifacts").rglob("*")
        if x.is_file()
    ]
    target = folder / "run.tar"
    target.unlink(missing_ok=True)
    write_archive(target, files, layout.silent, weights=False, checkpoints=False)
    return import_run(target, HOST, check_row)


@pytest.mark.parametrize("name", representatives(examples.bundled(), *ONE_OF_EACH_KIND))
def test_an_odd_file_is_refused_or_shown(
    name: str, target: Path, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    shown = 0
    for number in range(EXAMPLES):
        lines = mutated(bundles[name].lines, Random(number))
        try:
            job = imported(bundles[name], lines, tmp_path)
        except BackupError:
            continue
        shown += 1
        try:
            drawn_everywhere(job)
        except Exception as error:
            error.add_note(f"Random({number})")
            raise
        if shown == MOST_SHOWN:  # drawing takes the time
            break
    assert shown


JUNK = ("null", "[1]", '"x"', "7", '{"x": [1]}', "[" * 5_000 + "]" * 5_000)
COLUMNS = {  # those of a line are damaged together: a page that reads one of them reads all
    "sds-example": (
        "jobs.config",
        "jobs.environment jobs.error",
        "jobs.tags tensor_snapshots.counts",
        "results.details tensor_snapshots.stats tensor_profiles.shape",
        "tensor_snapshots.quantiles tensor_profiles.values",
    ),
    "benchmark-example": ("decoder_reports.report", "results.details"),
    "amphista-example": ("jobs.config", "attempts.engine_ref"),
}


@pytest.mark.sqlite("it stores values of any type")
@pytest.mark.parametrize("name", COLUMNS)
def test_a_damaged_row_is_shown_as_damaged(
    name: str, target: Path, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    job = imported(bundles[name], bundles[name].lines, tmp_path)
    for number, places in enumerate(COLUMNS[name]):
        for turn in range(len(JUNK) if ATTACK > 1 else 1):
            before = []
            for each, place in enumerate(places.split(), number + turn):
                table, column = place.split(".")
                column = f'"{column}"'  # one of them is a word of SQL
                junk = {"junk": JUNK[each % len(JUNK)]}
                with writing() as session:
                    connection = session.connection()
                    rows = connection.execute(text(f"SELECT rowid, {column} FROM {table}")).all()
                    connection.execute(text(f"UPDATE {table} SET {column} = :junk"), junk)
                again = text(f"UPDATE {table} SET {column} = :old WHERE rowid = :row")
                before.append((again, [{"row": row, "old": old} for row, old in rows]))
            try:
                drawn_everywhere(queries.job(job.id))
            except Exception as error:
                error.add_note(f"{places}, turn {turn}")
                raise
            with writing() as session:
                for again, rows in before:
                    session.connection().execute(again, rows)


VIEWS: dict[str, Callable[[], dict[str, Any]]] = {
    "runs": lambda: runs.draw(asked()),
    "a run": lambda: run.draw(None, asked(id="sds-0001")),
    "a run that failed": lambda: run.draw(None, asked(id="sds-0004")),
    "texts of a model": lambda: run.draw(None, asked(id="evaluation-0006")),
    "comparison": lambda: compare.draw(asked(ids="sds-0001,sds-0002")),
    "sweep": lambda: runs.draw(asked(q="sweep=sds-0007", open="sds-0007")),
}


@pytest.mark.parametrize("view", VIEWS)
def test_texts_are_never_markup(seeded: Settings, view: str) -> None:
    """A name, a note, an error and an answer."""
    written = [{"prompt": HOSTILE, "text": HOSTILE, "tokens": [1]}]
    store(
        job(6, kind="evaluation", config={"model": "toy"}, kept_stage=MODEL),
        result(6, MODEL, "greedy_agreement", 0.5, samples=written),
    )
    sweep.queue("sds", {"model": "toy"}, {"seed": ["0", "1"]}, HOST, name=HOSTILE)
    with writing() as session:
        session.get_one(Job, 1).note = HOSTILE
    parts = [p.get("value") if isinstance(p, dict) else p for p in VIEWS[view]().values()]
    shown = "".join(part for part in parts if isinstance(part, str))
    assert "onerror=" in shown
    assert "<img" not in shown and "${" not in shown and "{{" not in shown
