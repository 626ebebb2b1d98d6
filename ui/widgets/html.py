"""Small pieces of HTML that several pages show: the macros of `templates/widgets.html`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ui.format import esc
from ui.templates import fragments

WIDGETS = fragments("templates/widgets.html")
Cell = str | tuple[str, float]  # text, and the exact figure it stands for

badge, time_tag, problem = WIDGETS.badge, WIDGETS.time_tag, WIDGETS.problem
button, off = WIDGETS.button, WIDGETS.disabled
skeleton, empty = WIDGETS.skeleton, WIDGETS.empty
shell, copy_button, csv_button = WIDGETS.shell, WIDGETS.copy_button, WIDGETS.csv_button


def _trusted(value: Any) -> Any:
    if isinstance(value, str):
        return Markup(value)
    if isinstance(value, Mapping):
        return {key: _trusted(each) for key, each in value.items()}
    return [_trusted(each) for each in value] if isinstance(value, (list, tuple)) else value


def card(title: str, body: str, tail: str = "") -> Markup:
    return WIDGETS.card(title, Markup(body), Markup(tail))


def stack(*parts: str) -> Markup:
    return WIDGETS.stack(*map(Markup, parts))


def facts(pairs: Mapping[str, str], *, lines: bool = False) -> Markup:
    return WIDGETS.facts(_trusted(pairs), lines)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()
) -> Markup:
    return WIDGETS.table(heads, _trusted([*rows]), numeric)


def data_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], name: str) -> Markup:
    cells = [
        [(Markup(c[0]), c[1]) if isinstance(c, tuple) else Markup(c) for c in row] for row in rows
    ]
    return WIDGETS.data_table(columns, cells, name)


def scroll_box(label: str, table: str) -> Markup:
    return WIDGETS.scroll_box(label, Markup(table))


def attribute(value: object) -> str:
    """JSON that may stand in an HTML attribute."""
    return esc(json.dumps(value))


def joined(parts: Sequence[object]) -> Markup:
    """One piece of HTML after the other; text among them is escaped."""
    return Markup().join(parts)  # type: ignore[arg-type]
