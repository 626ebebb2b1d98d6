"""The bundled example runs are read-only, and can be deleted and restored."""

import json
from pathlib import Path

import pytest

from backend.backup import examples
from backend.backup.single import export_run, import_run
from backend.errors import ConflictError, ForbiddenError
from backend.queue import conversations, labels, removal, stories
from backend.queue.actor import Actor
from backend.queue.service import enqueue
from backend.settings import Settings
from backend.store import queries
from jobs.imported import check_row
from jobs.record import record
from tests.queue.conftest import HOST

SMALLEST = min(examples.bundled(), key=lambda run: examples.bundled()[run].stat().st_size)


@pytest.fixture(autouse=True)
def one_example(tables: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only the smallest example: unpacking all of them takes a second."""
    found = {SMALLEST: examples.bundled()[SMALLEST]}
    monkeypatch.setattr(examples, "bundled", lambda: found)


def test_they_are_added_once_and_take_no_number() -> None:
    assert [job.run for job in examples.install_examples(check_row)] == [SMALLEST]
    assert examples.install_examples(check_row) == []
    job = queries.job(SMALLEST)
    assert job.state == "succeeded" and job.id < 0 and queries.results([SMALLEST])
    assert enqueue("sds", {}, HOST).run == "sds-0001"
    with pytest.raises(ConflictError, match="read-only"):
        labels.edit([SMALLEST], HOST, add=["mine"])


def test_what_was_removed_stays_away_until_it_is_restored() -> None:
    examples.install_examples(check_row)
    assert [each.title for each in stories.stories()] == [*examples.bundled_stories()]
    recorded = examples.recorded_turn()
    stored = json.loads((examples.FOLDER / examples.CONVERSATION).read_text("utf-8"))
    assert recorded is not None and [*recorded.answers] == [1, 2, 3] and recorded.finished
    assert recorded.conversation.created_at == recorded.prompt.at == stored["at"]
    with pytest.raises(ForbiddenError):
        examples.remove_examples(Actor("eve"))
    assert [job.run for job in examples.remove_examples(HOST)] == [SMALLEST]
    assert examples.install_examples(check_row) == [] and queries.jobs() == []
    assert stories.stories() == conversations.newest_conversations(9) == []
    removal.purge([SMALLEST], HOST)
    assert [job.run for job in examples.restore_examples(HOST, check_row)] == [SMALLEST]
    assert len(stories.stories()) == len(examples.bundled_stories())
    assert len(conversations.newest_conversations(9)) == 1
    assert queries.results([SMALLEST]) and not queries.job(SMALLEST).removed_at


@pytest.mark.parametrize("stem", ["dlqat", "profile"])  # with records in plan and environment
def test_an_example_can_be_exported_again(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = examples.example_name(stem)
    file = examples.FOLDER / f"{stem}{examples.PACKED_SUFFIX}"
    monkeypatch.setattr(examples, "bundled", lambda: {run: file})
    examples.install_examples(check_row)
    export_run(run, tmp_path / "run.tar")
    copy = import_run(tmp_path / "run.tar", HOST, check_row)
    assert record(copy.run)["results"] == record(run)["results"]
