"""Reports: blocks of text, and of charts by the address each is drawn from; reading and writing of
them, and what they may hold. They do not affect any run."""

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

MOST_BLOCKS = 40
MOST_RUNS = 6
TITLE_LETTERS = 120
TEXT_LETTERS = 8000
CHART = re.compile(r"[a-z][a-z0-9-]{0,60}")
NOT_SAVED = "The report was not saved."


@dataclass(frozen=True)
class ReportBlock:
    """A part of a report."""

    id: int  # of this report alone; never used twice
    chart: str = ""  # of the registered chart; empty for a text
    query: str = ""  # the address the chart is drawn from, without page and question mark
    text: str = ""  # of the text, or the note below the chart

    @property
    def runs(self) -> list[str]:
        """The runs the chart is about, as far as its address names them."""
        words = (word for _, value in parse_qsl(self.query) for word in value.split(","))
        return [*dict.fromkeys(word for word in words if RUN_NAME.fullmatch(word))]


def stored_blocks(stored: Any) -> list[ReportBlock]:
    """The blocks of a row; parts of it that cannot be read are left out."""
    fields = ReportBlock.__dataclass_fields__
    rows = [row for row in stored if isinstance(row, dict)] if isinstance(stored, list) else []
    return [
        ReportBlock(**{name: row[name] for name in fields if name in row})
        for row in rows
        if isinstance(row.get("id"), int)
    ]


def runs_of(blocks: Iterable[ReportBlock]) -> list[str]:
    """The runs the charts are about, in the order they appear."""
    return [*dict.fromkeys(run for block in blocks for run in block.runs)]


def report(number: int) -> Report:
    """One report; `NotFoundError` if there is none of that number."""
    with reading() as session:
        found = session.get(Report, number)
    if found is None:
        raise NotFoundError(f"There is no report {number}.", "It may have been deleted.")
    return found


def reports() -> list[Report]:
    """Reports, the one saved last first."""
    return fetched(select(Report).order_by(Report.saved_at.desc(), Report.id.desc()).limit(500))


def create_report(title: str, actor: Actor, blocks: Iterable[ReportBlock] = ()) -> int:
    """Begin a report, empty or with `blocks`; return its number. `ConfigError` if the title is
    empty or too long, or the report too large."""
    require_host(actor, "write a report")
    now, blocks = now_ms(), [*blocks]
    _check(blocks)
    made = Report(
        title=_title(title),
        owner=actor.name,
        blocks=[asdict(block) for block in blocks],
        created_at=now,
        saved_at=now,
    )
    with writing(durable=True) as session:
        session.add(made)
        session.flush()
        return made.id


def rename_report(number: int, title: str, actor: Actor) -> None:
    require_host(actor, "write a report")
    with writing() as session:
        row = _locked(session, number)
        row.title, row.saved_at = _title(title), now_ms()


def delete_report(number: int, actor: Actor) -> None:
    """Delete a report; the runs it is about stay."""
    require_host(actor, "delete a report")
    with writing() as session:
        session.delete(_locked(session, number))


def add_text(number: int, text: str, actor: Actor) -> None:
    """Add a text at the end; `ConfigError` if it is empty or too long, or the report is full."""
    _change(number, actor, lambda blocks: [*blocks, ReportBlock(_next(blocks), text=_text(text))])


def add_chart(number: int, chart: str, query: str, actor: Actor) -> None:
    """Add a chart at the end; `ConfigError` for no address, or too many runs. The caller knows
    whether there is such a chart."""
    query = one_line(query)
    if not CHART.fullmatch(chart) or len(query) > 2000:
        raise ConfigError("The chart was not added.", "Its address is not one of a page.")
    _change(number, actor, lambda blocks: [*blocks, ReportBlock(_next(blocks), chart, query)])


def write_text(number: int, block: int, text: str, actor: Actor) -> None:
    """Set the text of a block, or the note of a chart; an empty note removes it."""
    _change(
        number,
        actor,
        lambda blocks: [
            replace(b, text=_text(text, may_be_empty=bool(b.chart))) if b.id == block else b
            for b in blocks
        ],
    )


def move_block(number: int, block: int, by: int, actor: Actor) -> None:
    """Move a block `by` places down, as far as there are any."""

    def moved(blocks: list[ReportBlock]) -> list[ReportBlock]:
        one = next((b for b in blocks if b.id == block), None)
        if one is None:
            return blocks
        others = [b for b in blocks if b is not one]
        place = max(0, blocks.index(one) + by)
        return [*others[:place], one, *others[place:]]

    _change(number, actor, moved)


def remove_block(number: int, block: int, actor: Actor) -> None:
    _change(number, actor, lambda blocks: [b for b in blocks if b.id != block])


def _change(
    number: int, actor: Actor, change: Callable[[list[ReportBlock]], list[ReportBlock]]
) -> None:
    """Change the blocks of a report in one transaction, so that two people lose nothing."""
    require_host(actor, "write a report")
    with writing() as session:
        row = _locked(session, number)
        blocks = change(stored_blocks(row.blocks))
        _check(blocks)
        row.blocks, row.saved_at = [asdict(block) for block in blocks], now_ms()


def _locked(session: Session, number: int) -> Report:
    """The row, which nobody else changes before the end of the transaction."""
    try:
        (row,) = locked(session, Report, [number])
    except NoResultFound:
        raise NotFoundError(NOT_SAVED, f"There is no report {number} any more.") from None
    return row


def _check(blocks: list[ReportBlock]) -> None:
    if len(blocks) > MOST_BLOCKS:
        raise ConfigError(NOT_SAVED, f"It would have more than {MOST_BLOCKS} parts.")
    if len(runs := runs_of(blocks)) > MOST_RUNS:
        raise ConfigError(
            NOT_SAVED,
            f"It would be about {len(runs)} runs; the maximum is {MOST_RUNS}.",
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
