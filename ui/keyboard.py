"""Keyboard shortcuts: for the browser, for the list that `?` opens, and for Help. None changes
anything, and none works while a text field has the focus."""

from collections.abc import Iterable
from typing import NamedTuple

from ui.format import href

GO = "g"  # the key before the letter of a page


class Shortcut(NamedTuple):
    """Keys, pressed one after the other; their effect; the address they open, if any."""

    keys: str
    effect: str
    address: str = ""


FIXED = (
    Shortcut("/", "Search runs, pages and terms; Ctrl or ⌘ and K as well"),
    Shortcut("?", "List keyboard shortcuts"),
    Shortcut("n", "New run", "new"),
    Shortcut("p", "Present this view on the full screen"),
    Shortcut("f", "Show the chart under the pointer, or in focus, on the full screen"),
    Shortcut("Esc", "Close the open dialog or list"),
)


def shortcuts(pages: Iterable[tuple[str, str, str]]) -> list[Shortcut]:
    """Fixed shortcuts, then one for each page (letter, name, path) that has a letter."""
    return [
        *FIXED,
        *(Shortcut(f"{GO} {key}", f"Go to {name}", href(path)) for key, name, path in pages if key),
    ]
