"""The table of runs: an own HTML table that sorts by keyboard, filters, and can be exported.

Its columns come from the configs and results of the runs shown, so a new kind of run needs no
change here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.store.session import now_ms
from backend.store.tables import Job, Result
from ui.components.cards import attribute, elapsed, model_name, run_link
from ui.components.figures import Figures, choices, kind_of, kind_title, metric
from ui.format import NONE, badge, duration, esc, number, time_tag

NEWEST = "age"


@dataclass(frozen=True)
class Row:
    """One run and its figures."""

    job: Job
    figures: Figures
    now: int

    @property
    def text(self) -> str:
        """What the filter looks in, lower case."""
        job = self.job
        model = str(job.config.get("model", ""))
        parts = (job.run, job.name, kind_title(job), model, *choices(job), job.state, job.owner)
        return " ".join(parts).lower()


@dataclass(frozen=True)
class Column:
    """One column: `value` sorts and is exported, `html` is shown."""

    key: str
    title: str
    value: Callable[[Row], Any]
    html: Callable[[Row], str]
    numeric: bool = False


def rows(jobs: Iterable[Job], results: Iterable[Result]) -> list[Row]:
    """Runs with their figures, in the order given."""
    found: dict[int, list[Result]] = {}
    for result in results:
        found.setdefault(result.job_id, []).append(result)
    now = now_ms()
    return [Row(j, Figures(kind_of(j), found.get(j.id, ())), now) for j in jobs]


def _plain(key: str, title: str, value: Callable[[Row], Any]) -> Column:
    return Column(key, title, value, lambda row: esc(value(row)))


def _figure(key: str, title: str, value: Callable[[Row], Any], write: Callable[..., str]) -> Column:
    return Column(key, title, value, lambda row: write(value(row)), numeric=True)


def _name(row: Row) -> str:
    return f'<span class="clip" title="{esc(row.job.name)}">{esc(row.job.name)}</span>'


def _change(value: float | None) -> str:
    """A change for the worse or better, with its sign."""
    if value is None:
        return NONE
    return f"{'+' if value >= 0 else '−'}{abs(100 * value):.1f} %"


def _of_run(name: str) -> Column:
    known = metric(name)

    def value(row: Row) -> float | None:
        return row.figures.value("run", name)

    return _figure(name, known.title, value, known.write)


RUN = Column("run", "Run", lambda r: r.job.id, lambda r: run_link(r.job))
STATE = Column("state", "State", lambda r: r.job.state, lambda r: badge(r.job.state))
MODEL = Column(
    "model",
    "Model",
    lambda r: str(r.job.config.get("model", "")),
    lambda r: model_name(r.job.config.get("model", NONE)),
)
AGE = Column(NEWEST, "Age", lambda r: r.job.created_at, lambda r: time_tag(r.job.created_at, r.now))
BEFORE = (
    RUN,
    Column("name", "Name", lambda r: r.job.name, _name),
    _plain("kind", "Kind", lambda r: kind_title(r.job)),
    MODEL,
    _plain("choices", "Setting", lambda r: " · ".join(choices(r.job))),
    STATE,
)
PERPLEXITY = (
    _figure(
        "dense",
        "Perplexity, dense",
        lambda r: r.figures.value(r.figures.first, "perplexity"),
        number,
    ),
    _figure("ppl", "Final", lambda r: r.figures.final(), number),
    _figure("change", "Change", lambda r: r.figures.change(), _change),
)
AFTER = (
    _figure("took", "Duration", lambda r: elapsed(r.job, r.now), duration),
    AGE,
)


def columns(shown: Sequence[Row]) -> list[Column]:
    """The columns for these rows: perplexity and figures of the run where any row has them."""
    figures = [row.figures for row in shown]
    measured = any("perplexity" in f.metrics for f in figures)
    named = dict.fromkeys(name for f in figures for name in f.of_run)
    return [*BEFORE, *(PERPLEXITY if measured else ()), *map(_of_run, named), *AFTER]


def filtered(all_rows: Iterable[Row], q: str) -> list[Row]:
    """Rows that hold every word of `q`."""
    words = q.lower().split()
    return [row for row in all_rows if all(word in row.text for word in words)]


def arranged(shown: Sequence[Row], by: Column, descending: bool) -> list[Row]:
    """Sorted by a column; rows without a value stand last either way."""

    def missing(row: Row) -> bool:
        value = by.value(row)
        return value in (None, "") or (isinstance(value, float) and math.isnan(value))

    with_value = [row for row in shown if not missing(row)]
    return sorted(with_value, key=by.value, reverse=descending) + [r for r in shown if missing(r)]


def _head(column: Column, by: Column, descending: bool) -> str:
    here = column.key == by.key
    order = ("descending" if descending else "ascending") if here else "none"
    arrow = ("↓" if descending else "↑") if here else ""
    flip = "asc" if here and descending else "desc" if here or column.numeric else "asc"
    view = attribute({"sort": column.key, "dir": flip})
    return (
        f'<th scope="col" aria-sort="{order}"{_kind(column)}>'
        f'<button type="button" class="sort" data-testid="sort-{esc(column.key)}" '
        f'data-view="{view}">{esc(column.title)}<i aria-hidden="true">{arrow}</i></button></th>'
    )


def _kind(column: Column) -> str:
    return ' class="num"' if column.numeric else ""


def html(shown: Sequence[Row], of: Sequence[Column], by: Column, descending: bool) -> str:
    """The table, with buttons in the heads that sort."""
    head = "".join(_head(c, by, descending) for c in of)
    body = "".join(
        f'<tr data-testid="row-{esc(row.job.run)}">'
        + "".join(f"<td{_kind(c)}>{c.html(row)}</td>" for c in of)
        + "</tr>"
        for row in shown
    )
    return (
        '<div class="table-scroll" tabindex="0" role="region" aria-label="Runs">'
        '<table class="data runs"><caption class="hidden">Runs</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _safe(value: Any) -> Any:
    """A text no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_csv(shown: Sequence[Row], of: Sequence[Column]) -> str:
    """The same rows and columns with full precision; the age becomes a time in UTC."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Added (UTC)" if c is AGE else c.title for c in of])
    for row in shown:
        writer.writerow([_exported(row, c) for c in of])
    return out.getvalue()


def _exported(row: Row, column: Column) -> Any:
    if column is RUN:
        return row.job.run
    if column is AGE:
        return datetime.fromtimestamp(row.job.created_at / 1000, UTC).isoformat(timespec="seconds")
    return _safe(column.value(row))
