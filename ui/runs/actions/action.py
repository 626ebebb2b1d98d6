"""What a button about runs is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.store.tables import Job
from ui.format import runs as runs_text


@dataclass(frozen=True)
class Action:
    """A button for one run or for several.

    Attributes:
        name: what the page is asked to do.
        question: to be confirmed first.
        forbidden: why the user may not do it.
        limit: why it does not fit the selected runs.
        address: of the link it is; or else what it writes into the address (`view`).
        prompt, initial: the text it asks for, and what that holds at first.
    """

    name: str
    text: str
    question: str = ""
    forbidden: str = ""
    limit: str = ""
    address: str = ""
    view: Mapping[str, str] | None = None
    prompt: str = ""
    initial: str = ""


def run_count(jobs: Sequence[Job]) -> str:
    """The name of a single run, or "3 runs"."""
    return jobs[0].run if len(jobs) == 1 else runs_text(len(jobs))
