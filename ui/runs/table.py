"""The table of runs: an own HTML table that sorts by keyboard, and the files it is exported to.

The baseline and the pinned runs stand above the others, whatever is filtered or paged.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from ui.format import esc
from ui.runs.columns import AGE, RUN_COLUMN, Column, added
from ui.runs.html import named_link
from ui.runs.rows import RunRow
from ui.widgets.html import attribute, scroll_box


def arranged(shown: Sequence[RunRow], by: Column, descending: bool) -> list[RunRow]:
    """Sorted by a column; rows without a value stand last either way."""

    def missing(row: RunRow) -> bool:
        value = by.value(row)
        return value in (None, "") or (isinstance(value, float) and math.isnan(value))

    with_value = [row for row in shown if not missing(row)]
    return sorted(with_value, key=_ordered(by), reverse=descending) + [
        row for row in shown if missing(row)
    ]


def _ordered(by: Column) -> Any:
    """Numbers before words, so that a setting that is sometimes a word can be sorted too."""

    def key(row: RunRow) -> tuple[bool, Any]:
        value = by.value(row)
        return (True, value.lower()) if isinstance(value, str) else (False, value)

    return key


# on the screen ------------------------------------------------------------------------------------


def html(
    shown: Sequence[RunRow],
    of: Sequence[Column],
    by: Column,
    descending: bool,
    *,
    base: RunRow | None = None,
    pinned: Sequence[RunRow] = (),
    picked: Sequence[str] = (),
) -> str:
    """The table, with buttons in the heads that sort and one in each row that picks it.

    Args:
        base: the run the others are compared with; stands first.
        pinned: stand below it.
        picked: names of the runs picked.
    """
    above = [row for row in (base, *pinned) if row]
    held = {row.job.id for row in above}
    head = "".join(_head(c, by, descending) for c in of)
    tops = "".join(_row(row, of, base, picked, pinned=True) for row in above)
    rest = "".join(_row(row, of, base, picked) for row in shown if row.job.id not in held)
    return scroll_box(
        "Runs",
        '<table class="data runs"><caption class="hidden">Runs</caption>'
        f'<thead><tr><td class="tick">{_pick_all(shown, picked)}</td>{head}</tr></thead>'
        f'<tbody class="pinned">{tops}</tbody><tbody>{rest}</tbody></table>',
    )


def _pick_all(shown: Sequence[RunRow], picked: Sequence[str]) -> str:
    """A button that picks every row of the page, or lets them all go."""
    here = [row.job.run for row in shown]
    held = [run for run in here if run in picked]
    state = "true" if here and len(held) == len(here) else "mixed" if held else "false"
    others = [run for run in picked if run not in here]
    view = attribute({"pick": ",".join(others if state == "true" else [*others, *here])})
    return (
        f'<button type="button" class="tick" role="checkbox" aria-checked="{state}" '
        f'aria-label="Pick all on this page" data-view="{view}"></button>'
    )


def _head(column: Column, by: Column, descending: bool) -> str:
    here = column.key == by.key
    order = ("descending" if descending else "ascending") if here else "none"
    arrow = ("↓" if descending else "↑") if here else ""
    flip = "asc" if here and descending else "desc" if here or column.numeric else "asc"
    view = attribute({"sort": column.key, "dir": flip, "page": ""})
    return (
        f'<th scope="col" aria-sort="{order}"{_kind(column)}>'
        f'<button type="button" class="sort" data-testid="sort-{esc(column.key)}" '
        f'data-view="{view}">{esc(column.title)}<i aria-hidden="true">{arrow}</i></button></th>'
    )


def _kind(column: Column) -> str:
    if column.key == RUN_COLUMN.key:
        return ' class="run"'
    return ' class="num"' if column.numeric else ""


def _row(
    row: RunRow,
    of: Sequence[Column],
    base: RunRow | None,
    picked: Sequence[str],
    pinned: bool = False,
) -> str:
    run = esc(row.job.run)
    is_base = base is not None and row.job.id == base.job.id
    cells = "".join(f"<td{_kind(c)}>{_cell(c, row, base, is_base, pinned)}</td>" for c in of)
    return (
        f'<tr data-testid="row-{run}"{" class=baseline" if is_base else ""}>'
        f'<td class="tick"><button type="button" class="tick" role="checkbox" '
        f'aria-checked="{str(row.job.run in picked).lower()}" aria-label="Pick {run}" '
        f'data-toggle="pick" data-value="{run}"></button></td>{cells}</tr>'
    )


def _cell(column: Column, row: RunRow, base: RunRow | None, is_base: bool, pinned: bool) -> str:
    if column.key == RUN_COLUMN.key:
        return named_link(row.job, _mark(row, is_base, pinned))
    return column.html(row) + column.delta(row, base)


def _mark(row: RunRow, is_base: bool, pinned: bool) -> str:
    """What a run on top is there for, and the way to take it down."""
    if is_base:
        return _chip("Baseline", f"Baseline: let {row.job.run} go", {"base": ""})
    if pinned:
        return (
            f'<button type="button" class="chip" data-toggle="pins" '
            f'data-value="{esc(row.job.run)}" aria-label="Pinned: let {esc(row.job.run)} go">'
            'Pinned <i aria-hidden="true">×</i></button>'
        )
    return ""


def _chip(words: str, label: str, view: dict[str, str]) -> str:
    return (
        f'<button type="button" class="chip" aria-label="{esc(label)}" '
        f'data-view="{attribute(view)}">{esc(words)} <i aria-hidden="true">×</i></button>'
    )


# in a file ----------------------------------------------------------------------------------------


def safe(value: Any) -> Any:
    """A text no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_csv(shown: Sequence[RunRow], of: Sequence[Column]) -> str:
    """The same rows and columns with full precision; the age becomes a time in UTC."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Added (UTC)" if c is AGE else c.title for c in of])
    for row in shown:
        writer.writerow([safe(_exported(row, c)) for c in of])
    return out.getvalue()


def to_json(shown: Sequence[RunRow], of: Sequence[Column]) -> str:
    """The same rows and columns as a list of objects, by the keys of the filter language."""
    rows = [{"added" if c is AGE else c.key: _exported(row, c) for c in of} for row in shown]
    return json.dumps(rows, indent=1, ensure_ascii=False)


def _exported(row: RunRow, column: Column) -> Any:
    if column is RUN_COLUMN:
        return row.job.run
    return added(row) if column is AGE else column.value(row)
