"""Whether a run gave the same results a second time, as HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from backend.store import queries
from backend.store.tables import Job
from jobs.replay import ReplayComparison, compare, replayed
from ui.format import NONE, number
from ui.pages.run.outcome import HTML

MAX_ROWS = 20
SIGNS = {"equal": ("succeeded", "✓"), "different": ("failed", "✕"), "open": ("queued", "○")}


@dataclass(frozen=True)
class Reproduction:
    """A comparison of two runs, seen from one of them.

    Attributes:
        other: the run it is compared with.
        state: the state whose colour the outcome has.
        more: differences that are not in `rows`.
    """

    other: str
    outcome: str
    state: str
    sign: str
    sentence: str
    heads: list[str]
    rows: list[list[str]]
    more: int


def reproduction_card(job: Job) -> Markup:
    """The comparison with the run this one repeats, and with those that repeat it."""
    own = replayed(job)
    repeated = [_reproduction(own, own.first)] if own else []
    others = [compare(job.id, other.id) for other in queries.replays(job.id)]
    return HTML.reproductions([*repeated, *(_reproduction(c, c.second) for c in others)])


def _reproduction(found: ReplayComparison, other: str) -> Reproduction:
    differences = found.differences if found.outcome != "open" else []
    rows = [
        [d.what, _value(d.what, d.first), _value(d.what, d.second)] for d in differences[:MAX_ROWS]
    ]
    heads = ["Difference", found.first, found.second]
    state, sign = SIGNS[found.outcome]
    more = len(differences) - MAX_ROWS
    return Reproduction(other, found.outcome, state, sign, str(found), heads, rows, more)


def _value(what: str, value: Any) -> str:
    if value is None:
        return NONE
    if "sha256" in what or what.endswith(" text"):
        return HTML.hash(str(value))
    return number(value, 7) if isinstance(value, float) else HTML.long(value)
