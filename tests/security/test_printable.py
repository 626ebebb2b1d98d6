"""Texts written by people and models cannot control the terminal that lists the runs."""

import json

import pytest

from backend.printable import one_line, printable
from backend.queue import labels, service
from backend.queue.actor import Actor
from backend.queue.artifacts import log_file
from backend.settings import Settings
from backend.store import queries
from backend.store.session import engine_for, writing
from backend.store.tables import Job
from jobs.chat import ChatSettings
from jobs.submit import parse_config
from tests.shell import slimscope

HOST = Actor("mira", "host")
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
        for text in (printed.stdout, printed.stderr):
            assert printable(text) == text
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
    for text in ("naïve Ω 模型 👩‍🔬 ‏עברית", "a\tb\nc"):
        assert printable(text) == text
    assert one_line(" a\tb\nc ") == "a b c"
