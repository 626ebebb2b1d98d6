"""What stands beside the filter: which columns are shown, the views people have named, exports."""

from __future__ import annotations

from collections.abc import Sequence

from backend.queue import labels, roles
from backend.queue.roles import Actor
from backend.store.tables import SavedView
from ui.format import esc
from ui.runs.columns import GROUPS, RUN_COLUMN, Column
from ui.runs.view import TableResult
from ui.widgets.html import attribute, off


def tools(found: TableResult, views: Sequence[SavedView], who: Actor) -> str:
    """HTML: buttons that open the choice of columns and the named views, and those that export."""
    return (
        '<div class="actions">'
        + panel("runs-columns", "Columns", columns_html(found))
        + panel("runs-views", "Views", views_html(views, who))
        + _button("csv", "Export CSV")
        + _button("json", "Export JSON")
        + "</div>"
    )


def _button(deed: str, words: str) -> str:
    return (
        f'<button type="button" class="button" data-testid="export-{deed}" data-do="{deed}">'
        f"{words}</button>"
    )


def panel(name: str, words: str, body: str) -> str:
    """HTML: a button, and a panel it opens; Escape or a click elsewhere closes it."""
    return (
        f'<button type="button" class="button" popovertarget="{name}">{words}</button>'
        f'<div class="panel" id="{name}" popover role="dialog" aria-label="{words}">'
        f"<h2>{words}</h2>{body}</div>"
    )


def columns_html(found: TableResult) -> str:
    """HTML: a button for every column there could be, pressed where it is shown."""
    shown = [c.key for c in found.columns]
    groups = ""
    for group in GROUPS:
        of = [c for c in found.known.values() if c.group == group and c.key != RUN_COLUMN.key]
        buttons = "".join(_column(c, shown) for c in of)
        groups += f'<h3>{group}</h3><div class="choices">{buttons}</div>' if of else ""
    usual = f'<p><button type="button" class="small" data-view="{attribute({"cols": ""})}">'
    return f"{groups}{usual}The usual columns</button></p>"


def _column(column: Column, shown: Sequence[str]) -> str:
    held = column.key in shown
    wanted = [k for k in shown if k != column.key] if held else [*shown, column.key]
    return (
        f'<button type="button" class="small" aria-pressed="{str(held).lower()}" '
        f'title="{esc(column.key)}" data-testid="column-{esc(column.key)}" '
        f'data-view="{attribute({"cols": ",".join(wanted)})}">{esc(column.title)}</button>'
    )


def views_html(views: Sequence[SavedView], who: Actor) -> str:
    """HTML: the views people have named, and the way to name this one."""
    closed = off(roles.may_not_change(who))
    items = "".join(
        f'<li><a href="runs?{esc(view.query)}">{esc(view.name)}</a>'
        f'<span class="quiet">by {esc(view.owner)}</span>'
        f'<button type="button" class="small" data-do="forget-view" data-run="{esc(view.name)}" '
        f'data-ask="Forget the view {esc(view.name)}?"{closed}>Forget</button></li>'
        for view in views
    )
    held = f'<ul class="plain">{items}</ul>' if items else '<p class="quiet">None is saved yet.</p>'
    return (
        f'{held}<p><button type="button" class="small" data-do="save-view" '
        f'data-testid="save-view" data-prompt="Filter, order, columns, baseline, pins saved as:"'
        f"{closed}>Save this view</button></p>"
    )


def perform(deed: str, name: str, query: str, who: Actor) -> str:
    """Saves or forgets a view.

    Returns:
        HTML: what was done.
    """
    if deed == "save-view":
        labels.save_view(name, query, who)
        return f"The view {esc(name.strip())} is saved, for everybody who opens this page."
    labels.delete_view(name, who)
    return f"The view {esc(name)} is forgotten."
