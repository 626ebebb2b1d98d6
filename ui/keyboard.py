"""The keyboard shortcuts, once: for the browser, for the list that `?` opens, and for Help.

None of them changes anything, and none works while a person types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ui.format import href

JUMP = "g"  # the key before the letter of a page


class Shortcut(NamedTuple):
    """Keys, one after the other; what they do; where they lead, if anywhere."""

    keys: str
    does: str
    to: str = ""


FIXED = (
    Shortcut("/", "Search runs and pages"),
    Shortcut("?", "List the keys"),
    Shortcut("n", "New run", "launch"),
    Shortcut("Esc", "Close what is open"),
)


def shortcuts(pages: Iterable[tuple[str, str, str]]) -> list[Shortcut]:
    """All of them.

    Args:
        pages: letter, name and path of each page; a page without a letter has no shortcut.
    """
    jumps = [
        Shortcut(f"{JUMP} {key}", f"Go to {name}", href(path)) for key, name, path in pages if key
    ]
    return [*FIXED, *jumps]
