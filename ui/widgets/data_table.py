"""A plain table of figures that can be read aloud, copied, and saved as CSV in the browser."""

from __future__ import annotations

from collections.abc import Sequence

from ui.format import esc

Cell = str | tuple[str, float]  # HTML, and the exact figure it stands for


def scroll_box(label: str, table: str) -> str:
    """HTML: a table (HTML) that may be wider or higher than its place; the arrow keys move it.

    Args:
        label: what people are told who do not see it.
    """
    told = f'tabindex="0" role="region" aria-label="{esc(label)}"'
    return f'<div class="scroll" {told}>{table}</div>'


def csv_button(name: str) -> str:
    """HTML: a button that saves the table before it as NAME.csv, in the browser."""
    return (
        f'<button type="button" class="small-button" data-csv="{esc(name)}">Download CSV</button>'
    )


def data_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], name: str) -> str:
    """HTML of a table: the first cell of a row heads it, the others are figures.

    Args:
        columns: titles, with units.
        rows: cells as HTML, text from people escaped; exact figures beside them go into the CSV.
        name: of the CSV file, and of the table for people who do not see it.
    """
    head = "".join(
        f'<th scope="col"{_side(place)}>{esc(title)}</th>' for place, title in enumerate(columns)
    )
    body = "".join(_row(cells) for cells in rows)
    table = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return scroll_box(name, table) + csv_button(name)


def _row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(map(_figure, others))}</tr>'


def _figure(cell: Cell) -> str:
    if isinstance(cell, str):
        return f'<td class="num">{cell}</td>'
    return f'<td class="num" data-value="{cell[1]!r}">{cell[0]}</td>'


def _side(place: int) -> str:
    return ' class="num"' if place else ""
