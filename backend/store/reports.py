"""Reading of reports: blocks of text, and of charts by the address each is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from sqlalchemy import select

from backend.errors import NotFoundError
from backend.store.session import reading
from backend.store.tables import RUN_NAME, Report

MOST_LISTED = 500


@dataclass(frozen=True)
class ReportBlock:
    """A part of a report.

    Attributes:
        id: of this report alone; never used twice.
        chart: of the registered chart; empty for a text.
        query: the address the chart is drawn from, without page and question mark.
        text: of the text, or the note below the chart.
    """

    id: int
    chart: str = ""
    query: str = ""
    text: str = ""

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
    """One report.

    Raises:
        NotFoundError: there is none of that number.
    """
    with reading() as session:
        found = session.get(Report, number)
    if found is None:
        raise NotFoundError(f"There is no report {number}.", "It may have been deleted.")
    return found


def reports() -> list[Report]:
    """Reports, the one saved last first."""
    query = select(Report).order_by(Report.saved_at.desc(), Report.id.desc()).limit(MOST_LISTED)
    with reading() as session:
        return list(session.scalars(query))
