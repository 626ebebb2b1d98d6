"""Reports: who may write them, what they hold, and what is refused."""

import pytest

from backend.errors import ConfigError, ForbiddenError, NotFoundError
from backend.queue import reports
from backend.queue.actor import Actor

HOST, GUEST = Actor("mira", "host"), Actor("guest", "guest")
pytestmark = pytest.mark.usefixtures("tables")


def blocks(number: int) -> list[tuple[int, str, str]]:
    stored = reports.stored_blocks(reports.report(number).blocks)
    return [(block.id, block.chart, block.text) for block in stored]


def test_a_report_is_put_together_and_read_again() -> None:
    number = reports.create_report(" What 2:4\ncosts ", HOST)
    reports.add_text(number, "Two runs.\r\nOne text.", HOST)
    reports.add_chart(number, "compare-lines", "ids=sds-0001,sds-0002&y=log", HOST)
    reports.write_text(number, 2, "They part early.", HOST)
    reports.move_block(number, 2, -5, HOST)
    assert reports.report(number).title == "What 2:4 costs"
    assert blocks(number) == [
        (2, "compare-lines", "They part early."),
        (1, "", "Two runs.\nOne text."),
    ]
    (chart, _) = reports.stored_blocks(reports.report(number).blocks)
    assert chart.runs == ["sds-0001", "sds-0002"]
    reports.remove_block(number, 2, HOST)
    reports.add_text(number, "Last.", HOST)
    assert blocks(number) == [(1, "", "Two runs.\nOne text."), (2, "", "Last.")]


def test_guests_read_and_change_nothing() -> None:
    number = reports.create_report("Ours", HOST)
    reports.add_text(number, "Words.", HOST)
    for attempt in (
        lambda: reports.create_report("Mine", GUEST),
        lambda: reports.rename_report(number, "Mine", GUEST),
        lambda: reports.add_text(number, "Mine", GUEST),
        lambda: reports.add_chart(number, "compare-lines", "", GUEST),
        lambda: reports.write_text(number, 1, "Mine", GUEST),
        lambda: reports.move_block(number, 1, 1, GUEST),
        lambda: reports.remove_block(number, 1, GUEST),
        lambda: reports.delete_report(number, GUEST),
    ):
        with pytest.raises(ForbiddenError):
            attempt()
    assert [each.title for each in reports.reports()] == ["Ours"]
    assert blocks(number) == [(1, "", "Words.")]


def test_what_a_report_cannot_hold_is_refused_and_changes_nothing() -> None:
    number = reports.create_report("Full", HOST)
    six = ",".join(f"sds-{n:04d}" for n in range(1, 7))
    reports.add_chart(number, "compare-lines", f"ids={six}", HOST)
    with pytest.raises(ConfigError, match="show 7 runs"):
        reports.add_chart(number, "weights-overlay", "run=sds-0007&tensor=x", HOST)
    with pytest.raises(ConfigError, match="address"):
        reports.add_chart(number, "<script>", "", HOST)
    with pytest.raises(ConfigError, match="characters"):
        reports.add_text(number, " \n", HOST)
    with pytest.raises(ConfigError, match="characters"):
        reports.rename_report(number, "x" * 121, HOST)
    assert len(blocks(number)) == 1


def test_what_cannot_be_read_of_a_row_is_left_out() -> None:
    kept = {"id": 3, "text": "ok", "color": "unknown"}
    assert reports.stored_blocks([{"text": "no id"}, "no block", kept]) == [
        reports.ReportBlock(3, text="ok")
    ]
    assert reports.stored_blocks({}) == []


def test_a_deleted_report_says_so() -> None:
    number = reports.create_report("Gone", HOST)
    reports.delete_report(number, HOST)
    for attempt in (reports.report, lambda n: reports.add_text(n, "x", HOST)):
        with pytest.raises(NotFoundError):
            attempt(number)
