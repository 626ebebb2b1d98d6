"""Reports: lists of blocks, each a text or a chart that is drawn from an address.

Reports do not affect runs."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from backend.errors import ConfigError, NotFoundError
from backend.printable import one_line, printable
from backend.queue.actor import Actor
from backend.queue.permissions import require_host
from backend.store.session import fetched, locked, now_ms, reading, writing
from backend.store.tables import RUN_NAME, Report

MAX_BLOCKS = 40
MAX_RUNS = 6
TITLE_LETTERS = 120
TEXT_LETTERS = 8000
CHART = re.compile(r"[a-z][a-z0-9-]{0,60}")
NOT_SAVED = "The report was not saved."


@dataclass(frozen=True)
class ReportBlock:
    """A part of a report.

    Attributes:
        id: number within the report, never used twice.
        chart: id of a registered chart; empty for a text.
        query: query string of the chart's address, without the question mark.
        text: the text, or the note below a chart.
    """

    id: int
    chart: str = ""
    query: str = ""
    text: str = ""

    @property
    def runs(self) -> list[str]:
        """The runs in the address of the chart."""
        words = (word for _, value in parse_qsl(self.query) for word in value.split(","))
        return [*dict.fromkeys(word for word in words if RUN_NAME.fullmatch(word))]


def stored_blocks(data: Any) -> list[ReportBlock]:
    """The blocks in the JSON data of a report; malformed blocks are omitted."""
    fields = ReportBlock.__dataclass_fields__
    rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    return [
        ReportBlock(**{name: row[name] for name in fields if name in row})
        for row in rows
        if isinstance(row.get("id"), int)
    ]


def runs_of(blocks: Iterable[ReportBlock]) -> list[str]:
    """The runs of all charts, in order of appearance."""
    return [*dict.fromkeys(run for block in blocks for run in block.runs)]


def report(number: int) -> Report:
    """A report.

    Raises:
        NotFoundError: there is no such report.
    """
    with reading() as session:
        row = session.get(Report, number)
    if row is None:
        raise NotFoundError(f"There is no report {number}.", "It may have been deleted.")
    return row


def reports() -> list[Report]:
    """Reports, the last saved first."""
    return fetched(select(Report).order_by(Report.saved_at.desc(), Report.id.desc()).limit(500))


def create_report(title: str, actor: Actor, blocks: Iterable[ReportBlock] = ()) -> int:
    """Create a report; return its number.

    Raises:
        ConfigError: the title is empty or too long, or the report is too large.
    """
    require_host(actor, "write a report")
    now, blocks = now_ms(), [*blocks]
    _check(blocks)
    row = Report(
        title=_title(title),
        owner=actor.name,
        blocks=[asdict(block) for block in blocks],
        created_at=now,
        saved_at=now,
    )
    with writing(durable=True) as session:
        session.add(row)
        session.flush()
        return row.id


def rename_report(number: int, title: str, actor: Actor) -> None:
    """Set the title of a report."""
    require_host(actor, "write a report")
    with writing() as session:
        row = _locked(session, number)
        row.title, row.saved_at = _title(title), now_ms()


def delete_report(number: int, actor: Actor) -> None:
    """Delete a report, but not its runs."""
    require_host(actor, "delete a report")
    with writing() as session:
        session.delete(_locked(session, number))


def add_text(number: int, text: str, actor: Actor) -> None:
    """Add a text at the end of a report.

    Raises:
        ConfigError: the text is empty or too long, or the report is full.
    """
    _change(number, actor, lambda blocks: [*blocks, ReportBlock(_next(blocks), text=_text(text))])


def add_chart(number: int, chart: str, query: str, actor: Actor) -> None:
    """Add a chart at the end of a report. The caller has checked that the chart exists.

    Raises:
        ConfigError: the address is malformed, or the report is too large.
    """
    query = one_line(query)
    if not CHART.fullmatch(chart) or len(query) > 2000:
        raise ConfigError("The chart was not added.", "Its address is not one of a page.")
    _change(number, actor, lambda blocks: [*blocks, ReportBlock(_next(blocks), chart, query)])


def write_text(number: int, block: int, text: str, actor: Actor) -> None:
    """Set the text of a block, or the note of a chart; an empty text removes a note."""

    def rewrite(blocks: list[ReportBlock]) -> list[ReportBlock]:
        return [
            replace(b, text=_text(text, may_be_empty=bool(b.chart))) if b.id == block else b
            for b in blocks
        ]

    _change(number, actor, rewrite)


def move_block(number: int, block: int, by: int, actor: Actor) -> None:
    """Move a block down by a number of positions (up if negative), at most to the end."""

    def reorder(blocks: list[ReportBlock]) -> list[ReportBlock]:
        target = next((b for b in blocks if b.id == block), None)
        if target is None:
            return blocks
        remaining = [b for b in blocks if b is not target]
        index = max(0, blocks.index(target) + by)
        return [*remaining[:index], target, *remaining[index:]]

    _change(number, actor, reorder)


def remove_block(number: int, block: int, actor: Actor) -> None:
    """Remove a block from a report."""
    _change(number, actor, lambda blocks: [b for b in blocks if b.id != block])


def _change(
    number: int, actor: Actor, change: Callable[[list[ReportBlock]], list[ReportBlock]]
) -> None:
    """Change the blocks of a report in one transaction, so that concurrent changes are kept."""
    require_host(actor, "write a report")
    with writing() as session:
        row = _locked(session, number)
        blocks = change(stored_blocks(row.blocks))
        _check(blocks)
        row.blocks, row.saved_at = [asdict(block) for block in blocks], now_ms()


def _locked(session: Session, number: int) -> Report:
    """The row of a report, locked until the end of the transaction."""
    try:
        (row,) = locked(session, Report, [number])
    except NoResultFound:
        raise NotFoundError(NOT_SAVED, f"There is no report {number} any more.") from None
    return row


def _check(blocks: list[ReportBlock]) -> None:
    if len(blocks) > MAX_BLOCKS:
        raise ConfigError(NOT_SAVED, f"It would have more than {MAX_BLOCKS} parts.")
    if len(runs := runs_of(blocks)) > MAX_RUNS:
        raise ConfigError(
            NOT_SAVED,
            f"It would show {len(runs)} runs; the maximum is {MAX_RUNS}.",
            "Begin another report, or remove a chart.",
        )


def _next(blocks: list[ReportBlock]) -> int:
    return max((block.id for block in blocks), default=0) + 1


def _title(text: str) -> str:
    title = one_line(text)
    if not 0 < len(title) <= TITLE_LETTERS:
        raise ConfigError(NOT_SAVED, f"A title has 1 to {TITLE_LETTERS} characters.")
    return title


def _text(text: str, *, may_be_empty: bool = False) -> str:
    cleaned = printable(text).strip()
    if len(cleaned) > TEXT_LETTERS or not (cleaned or may_be_empty):
        raise ConfigError(NOT_SAVED, f"A text has 1 to {TEXT_LETTERS:,} characters.")
    return cleaned
