"""Whether a run came out the same a second time, as HTML."""

from __future__ import annotations

from typing import Any

from backend.store import queries
from backend.store.tables import Job
from jobs.replay import ReplayComparison, compare, replayed
from ui.format import NONE, esc, href, number
from ui.pages.run.details import hash_tag
from ui.widgets.html import card, table

SHOWN = 20
SIGNS = {"equal": ("succeeded", "✓", "equal"), "different": ("failed", "✕", "different")}


def replay_card(job: Job) -> str:
    """HTML: the comparison with the run this one repeats, and with those that repeat it."""
    own = replayed(job)
    others = [compare(job.id, other.id) for other in queries.replays(job.id)]
    parts = [_compared(c, c.first) for c in ([own] if own else [])]
    parts += [_compared(c, c.second) for c in others]
    return card("Replay", "".join(parts)) if parts else ""


def _compared(found: ReplayComparison, with_run: str) -> str:
    """One comparison: a sign, the sentence, and what differs."""
    state, sign, word = SIGNS.get(found.outcome, ("queued", "○", "open"))
    mark = f'<span class="state state-{state}"><i aria-hidden="true">{sign}</i>{word}</span>'
    link = f'<a class="mono" href="{href("run", id=with_run)}">{esc(with_run)}</a>'
    told = f"<p>{mark} {link}</p><p>{esc(found)}</p>"
    return told + (_differences(found) if found.outcome != "open" else "")


def _differences(found: ReplayComparison) -> str:
    if not found.differences:
        return ""
    rows = [
        [esc(d.what), _value(d.what, d.first), _value(d.what, d.second)]
        for d in found.differences[:SHOWN]
    ]
    more = len(found.differences) - SHOWN
    rest = f'<p class="quiet">and {more} more</p>' if more > 0 else ""
    return table(["What differs", found.first, found.second], rows) + rest


def _value(what: str, value: Any) -> str:
    if value is None:
        return NONE
    if "sha256" in what or what.endswith(" text"):
        return hash_tag(str(value))
    if isinstance(value, float):
        return number(value, 7)
    return f'<span class="long">{esc(value)}</span>'
