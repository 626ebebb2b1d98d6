"""What Gradio remembers of every open page, made small.

For each page view it describes all components of all pages anew, which takes a tenth of a second
and 2.5 MB, and keeps that for the next 10,000 views. Only its deep links read it, and we offer
none: our addresses hold what a page shows. What a page has been sent is still remembered.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gradio import state_holder
from gradio.blocks import Block


class SmallSession(state_holder.SessionState):
    """A session that begins without descriptions; Gradio adds those of components that change."""

    def __init__(self, blocks: Any) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]

    def __setitem__(self, key: int, value: Any) -> None:
        """What takes the place of a component takes its number too. With a number of its own it
        would be kept twice as soon as it is read, and so would the next: a page that is open all
        day would be remembered in ever more pieces."""
        if isinstance(value, Block):
            value._id = key
        super().__setitem__(key, value)


def keep_sessions_small() -> None:
    """From now on, in this process."""
    state_holder.SessionState = SmallSession  # type: ignore[misc]
