"""Unexpected input, damaged rows and hostile texts are rejected or shown, and harm no other run."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from backend.errors import ConfigError, ConflictError, NotFoundError, SlimscopeError
from backend.printable import one_line, printable
from backend.queue import labels, scheduling, service
from backend.queue.actor import Actor
from backend.queue.artifacts import log_file
from backend.queue.service import MAX_PRIORITY
from backend.settings import Settings
from backend.store import queries
from backend.store.json_column import DamagedJson, check_intact
from backend.store.session import engine_for, writing
from backend.store.states import State
from backend.store.tables import Job
from jobs import pipeline, submit
from jobs.chat import ChatSettings
from jobs.cli.server import build
from jobs.kind import kinds
from jobs.operations.changes import cancel_runs
from jobs.operations.registry import OPERATIONS
from jobs.operations.runs import list_runs, run_results, runs_text
from jobs.reproduction import reproduce
from jobs.submit import parse_config, validate_config
from tests.shell import slimscope
from ui.search import search_runs

HOST = Actor("mira", "host")


@pytest.fixture
def store(tables: Settings) -> None:
    for name in ("first", "second", "third"):
        service.enqueue("statistics", {"model": "toy"}, HOST, name=name)


def test_a_run_of_another_kind_is_not_meant(store: None) -> None:
    for ask in (queries.job, queries.sweep, queries.artifacts, run_results):
        with pytest.raises(NotFoundError, match=r"Run 2 is statistics-0002"):
            ask("amphista-0002")
    with pytest.raises(NotFoundError):
        cancel_runs(["amphista-0002"], HOST)
    assert queries.job(2).state == State.QUEUED
    for run in (2, "2", "0002", "statistics-0002", "statistics-2"):
        assert queries.job(run).run == "statistics-0002"


@pytest.mark.parametrize("column", ["config", "environment", "tags", "error"])
def test_one_damaged_row_hides_no_other(store: None, column: str) -> None:
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET {column} = '{{\"model' WHERE id = 2"))
    listed = list_runs()
    assert [run["damaged"] for run in listed] == [False, True, False]
    states = [line.split()[1] for line in runs_text(listed).splitlines()[1:]]
    assert states == ["queued", "damaged", "queued"]
    assert "third" in search_runs("statistics")[0]["about"]
    assert queries.job(2).shown_state == "damaged" and scheduling.status().queued


@pytest.mark.parametrize("column", ["name", "owner", "stage", "config", "tags", "note"])
def test_bytes_that_are_no_text_hide_no_other_run(store: None, column: str) -> None:
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET {column} = CAST(X'7B22FF' AS TEXT) WHERE id = 2"))
        session.execute(text("UPDATE job_events SET text = CAST(X'FF' AS TEXT) WHERE job_id = 2"))
    listed = list_runs()
    assert [run["id"] for run in listed] == [f"statistics-000{n}" for n in (3, 2, 1)]
    assert listed[1]["damaged"] == (column in ("config", "tags"))
    assert "third" in search_runs("statistics")[0]["about"]
    assert queries.events(2)[0].text == "\ufffd" and scheduling.status().queued
    stored = b'{"model": "\xff"}'.hex()  # JSON all the same, but of another model
    with writing() as session:
        session.execute(text(f"UPDATE jobs SET config = CAST(X'{stored}' AS TEXT) WHERE id = 3"))
    assert queries.job(3).damaged and not queries.job(1).damaged


def test_a_damaged_run_is_not_run_with_defaults(store: None) -> None:
    with writing() as session:
        session.execute(text("UPDATE jobs SET config = '{' WHERE id = 2"))
    with pytest.raises(ConfigError, match="damaged"):
        reproduce("statistics-0002", HOST)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_intact(DamagedJson())
    check_intact({})


def test_a_priority_has_bounds_and_what_has_ended_cannot_be_cancelled(store: None) -> None:
    for priority in (MAX_PRIORITY + 1, -(2**70)):
        with pytest.raises(ConfigError, match="-1000 to 1000") as raised:
            service.enqueue("statistics", {}, HOST, priority=priority)
        assert raised.value.field == "priority"
    assert len(queries.jobs()) == 3
    cancel_runs(["statistics-0001"], HOST)
    with pytest.raises(ConflictError, match="It is cancelled already"):
        cancel_runs(["statistics-0001"], HOST)
    with pytest.raises(ConflictError, match="Nothing was cancelled"):
        cancel_runs([], HOST)
    cancel_runs(["1", "2"], HOST)  # one of them is active
    assert queries.job(2).state == State.CANCELLED


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("segments", True, "must be a"),
        ("damping", False, "must be a"),
        ("seed", True, "must be a"),
        ("pattern", "50", "For a percentage write 50%"),
    ],
)
def test_a_value_that_may_be_meant_otherwise_is_refused(field: str, value: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        validate_config("sds", {field: value})
    assert raised.value.field == field


# printable ----------------------------------------------------------------------------------------


TITLE = "\x1b]0;owned\x07"  # sets the title of a terminal
HOSTILE = f"{TITLE}\x1b[2Jred\x9b31m\u202egnp\x7f"
CLEAN = "]0;ownedred31mgnp"


@pytest.fixture
def hostile_run(tables: Settings) -> Job:
    """A run of an earlier version, which accepted any characters."""
    job = service.enqueue("sds", {"model": HOSTILE}, HOST)
    with writing() as session:
        row = session.get_one(Job, job.id)
        row.name, row.stage, row.error = HOSTILE, HOSTILE, {"what": HOSTILE}
        row.attempts_made = 1
    log = log_file(job.run, 1)
    log.parent.mkdir(parents=True)
    log.write_text(f"50 %\r100 %\n{HOSTILE}\tend\n")
    yield queries.job(job.id)
    engine_for.cache_clear()


def test_what_is_printed_of_a_run_controls_nothing(hostile_run: Job) -> None:
    for words in (["list"], ["show", hostile_run.run], ["show", HOSTILE]):
        printed = slimscope(*words)
        assert "Traceback" not in printed.stderr
        for output in (printed.stdout, printed.stderr):
            assert printable(output) == output
    assert slimscope("logs", hostile_run.run).stdout == f"50 %\n100 %\n{CLEAN}\tend\n"


def test_names_notes_and_views_are_cleaned_where_they_come_in(tables: Settings) -> None:
    job = service.enqueue("sds", {}, HOST, name=f"a{HOSTILE}\nb\ud800")
    labels.edit([job.run], HOST, text=f"first{HOSTILE}\r\n\tsecond\0")
    labels.save_view(f"best{HOSTILE}", "q=1", HOST)
    stored = queries.job(job.id)
    assert stored.name == f"a{CLEAN} b" and stored.note == f"first{CLEAN}\n\tsecond"
    assert [view.name for view in queries.views()] == [f"best{CLEAN}"]
    engine_for.cache_clear()


def test_prompts_keep_lines_and_tabs() -> None:
    config = parse_config(ChatSettings, {"prompt": f"def f():\n\treturn 1{HOSTILE}\0"})
    assert json.loads(config.model_dump_json())["prompt"] == f"def f():\n\treturn 1{CLEAN}"
    for written in ("naïve Ω 模型 👩‍🔬 ‏עברית", "a\tb\nc"):
        assert printable(written) == written
    assert one_line(" a\tb\nc ") == "a b c"


# odd input ----------------------------------------------------------------------------------------


ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**70,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "\0",
        "../../etc/passwd",
        "/",
        "~",
        "http://127.0.0.1:1/x",
        "toy",
        "toy,toy",
        "sds-0001",
        "example-",
        "sds-example",
        "2:4",
        "0:0",
        "4:2",
        "1e400%",
        "-50%",
        "100.1%",
        "*",
        "a" * 5000,
        "q_proj=2:4," * 100,
        "\x1b[31m",
        "\u202e",
        "\ud800",
        [],
        [[]],
        ["toy"],
        {},
        {"x": 1},
        b"x",
    ]
)
BASE: Mapping[str, dict[str, Any]] = {kind: {"model": "toy"} for kind in kinds()}
QUIET = settings(derandomize=True, database=None)


def said(error: SlimscopeError) -> str:
    """Return the sentence of an error, after checking that it has one and that its field exists."""
    assert error.what and len(str(error)) < 3_000
    return str(error)


@pytest.mark.parametrize("kind", BASE)
@QUIET
@given(data=st.data())
def test_a_config_is_accepted_or_refused(tables: object, kind: str, data: st.DataObject) -> None:
    names = st.sampled_from([*kinds()[kind].config.model_fields, "no_such_field"])
    values = BASE[kind] | data.draw(st.dictionaries(names, ODD, min_size=1, max_size=3))
    try:
        config, estimate = submit.check_and_estimate(kind, values)
    except SlimscopeError as error:
        said(error)
        return
    assert config.model_dump(mode="json") and estimate.bytes >= 0


TOOLS = [each for each in OPERATIONS.values() if each.tool]
JSON = ODD.filter(lambda value: not isinstance(value, bytes) and value == value)


@QUIET
@given(data=st.data())
def test_a_tool_answers_or_says_what_is_wrong(
    tables: object, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    mcp = pytest.importorskip("mcp")
    tool = data.draw(st.sampled_from(TOOLS))
    names = st.sampled_from([*tool.signature.parameters, "no_such_parameter"])
    values = data.draw(st.dictionaries(names, JSON, max_size=4))

    async def call() -> Any:
        async with mcp.Client(build(Actor("guest", "guest"))) as client:
            return await client.call_tool(tool.tool, values)

    try:
        answer = asyncio.run(call())
    except UnicodeEncodeError:  # a lone surrogate is no JSON
        return
    told = " ".join(each.text for each in answer.content if answer.is_error)
    assert "unexpected error" not in told and "Traceback" not in told, (tool.name, values, told)
    wrong = tool.writes or "no_such_parameter" in values
    assert answer.is_error or not wrong, (tool.name, values)
    assert bool(told) == answer.is_error and [r for r in caplog.records if r.exc_info] == []


TEXT = pipeline.preset("prune, quantize, draft", "toy")
PIECES = st.sampled_from(
    [
        "",
        "- sds: {}",
        "steps:",
        "model: toy",
        "[",
        "{",
        "}",
        "&a",
        "*a",
        "!!python/object:os.system",
        "? ",
        ": ",
        "- ",
        "\t",
        "\n",
        "- nothing: {}",
        "alone: yes",
        "preset: none",
        "0",
        "2:4",
        "null",
        "!!int x",
        "!!binary x",
        "- sds: [1]",
        "- [sds]",
        "pattern:",
        "\0",
        "\ud800",
        "<<: {a: b}",
    ]
)


@QUIET
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 30), PIECES), max_size=4),
    depth=st.sampled_from([0, 0, 0, 5_000]),
)
def test_a_pipeline_is_read_or_refused(
    tables: object, cuts: list[tuple[int, int, str]], depth: int
) -> None:
    text = TEXT
    for start, length, piece in cuts:
        text = text[:start] + piece + text[start + length :]
    text = text + "[" * depth
    try:
        assert pipeline.plan(pipeline.read(text))
    except SlimscopeError as error:
        said(error)


@pytest.mark.parametrize("kind", ["", "nothing", "../sds", "sds\0"])
def test_a_kind_is_one_there_is(tables: object, kind: Any) -> None:
    with pytest.raises(SlimscopeError):
        submit.check_and_estimate(kind, {})
