"""The keyboard shortcuts, once: for the browser, for the list that `?` opens, and for Help.

None of them changes anything, and none works while a person types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ui.format import href

JUMP = "g"  # the key before the letter of a page
LETTERS = {
    "": "o", "launch": "l", "jobs": "j", "runs": "r", "weights": "w", "quant": "q", "speed": "s",
    "generate": "g", "compare": "c", "help": "h",
}  # fmt: skip


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


def shortcuts(pages: Iterable[tuple[str, str]]) -> list[Shortcut]:
    """All of them.

    Args:
        pages: name and path of the pages there are.
    """
    jumps = [
        Shortcut(f"{JUMP} {LETTERS[path]}", f"Go to {name}", href(path))
        for name, path in pages
        if path in LETTERS
    ]
    return [*FIXED, *jumps]
