"""Reports: who may write them, what they hold, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.errors import ConfigError, ForbiddenError, NotFoundError
from backend.queue import reports as writing
from backend.queue.roles import Actor
from backend.store import reports
from backend.store.migrate import upgrade
from backend.store.session import engine_for

HOST, GUEST = Actor("mira", "host"), Actor("guest", "guest")


@pytest.fixture(autouse=True)
def _tables(data_dir: Path) -> Iterator[None]:
    upgrade()
    yield
    engine_for.cache_clear()


def blocks(number: int) -> list[tuple[int, str, str]]:
    stored = reports.stored_blocks(reports.report(number).blocks)
    return [(block.id, block.chart, block.text) for block in stored]


def test_a_report_is_put_together_and_read_again() -> None:
    number = writing.create_report(" What 2:4\ncosts ", HOST)
    writing.add_text(number, "Two runs.\r\nOne text.", HOST)
    writing.add_chart(number, "compare-lines", "ids=sds-0001,sds-0002&y=log", HOST)
    writing.write_text(number, 2, "They part early.", HOST)
    writing.move_block(number, 2, -5, HOST)
    assert reports.report(number).title == "What 2:4 costs"
    assert blocks(number) == [
        (2, "compare-lines", "They part early."), (1, "", "Two runs.\nOne text.")
    ]  # fmt: skip
    (chart, _) = reports.stored_blocks(reports.report(number).blocks)
    assert chart.runs == ["sds-0001", "sds-0002"]
    writing.remove_block(number, 2, HOST)
    writing.add_text(number, "Last.", HOST)
    assert blocks(number) == [(1, "", "Two runs.\nOne text."), (2, "", "Last.")]


def test_guests_read_and_change_nothing() -> None:
    number = writing.create_report("Ours", HOST)
    writing.add_text(number, "Words.", HOST)
    for attempt in (
        lambda: writing.create_report("Mine", GUEST),
        lambda: writing.rename_report(number, "Mine", GUEST),
        lambda: writing.add_text(number, "Mine", GUEST),
        lambda: writing.add_chart(number, "compare-lines", "", GUEST),
        lambda: writing.write_text(number, 1, "Mine", GUEST),
        lambda: writing.move_block(number, 1, 1, GUEST),
        lambda: writing.remove_block(number, 1, GUEST),
        lambda: writing.delete_report(number, GUEST),
    ):
        with pytest.raises(ForbiddenError):
            attempt()
    assert [each.title for each in reports.reports()] == ["Ours"]
    assert blocks(number) == [(1, "", "Words.")]


def test_what_a_report_cannot_hold_is_refused_and_changes_nothing() -> None:
    number = writing.create_report("Full", HOST)
    six = ",".join(f"sds-{n:04d}" for n in range(1, 7))
    writing.add_chart(number, "compare-lines", f"ids={six}", HOST)
    with pytest.raises(ConfigError, match="about 7 runs"):
        writing.add_chart(number, "weights-overlay", "run=sds-0007&tensor=x", HOST)
    with pytest.raises(ConfigError, match="address"):
        writing.add_chart(number, "<script>", "", HOST)
    with pytest.raises(ConfigError, match="characters"):
        writing.add_text(number, " \n", HOST)
    with pytest.raises(ConfigError, match="characters"):
        writing.rename_report(number, "x" * 121, HOST)
    assert len(blocks(number)) == 1


def test_a_deleted_report_says_so() -> None:
    number = writing.create_report("Gone", HOST)
    writing.delete_report(number, HOST)
    for attempt in (reports.report, lambda n: writing.add_text(n, "x", HOST)):
        with pytest.raises(NotFoundError):
            attempt(number)


def test_what_cannot_be_read_of_a_row_is_left_out() -> None:
    kept = {"id": 3, "text": "ok", "colour": "unknown"}
    assert reports.stored_blocks([{"text": "no id"}, "no block", kept]) == [
        reports.ReportBlock(3, text="ok")
    ]
    assert reports.stored_blocks({}) == []
