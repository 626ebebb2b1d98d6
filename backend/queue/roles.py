"""Who may do what. A host may do everything. A guest looks; where the host allows it, a guest adds
one small run at a time, behind all others, and may cancel that one.

Every rule stands here and is enforced by the functions that change something (`service`,
`labels`); pages ask `may_not_…` only to say beforehand what will be refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import ForbiddenError, RateLimitError, SlimscopeError
from backend.settings import settings
from backend.store.states import ACTIVE
from backend.store.tables import Job

GUEST = "guest-"  # starts the name of every guest that can be told from others
GUEST_PRIORITY = -1000  # a run gains one for each hour it waits
LOOK = "Guests may look, not change."
OWN = "Guests may cancel only their own runs."
ASK = "Ask the person who started Slimscope."
MINUTE = 60.0
log = logging.getLogger("slimscope.refused")

E = TypeVar("E", bound=SlimscopeError)


@dataclass(frozen=True)
class Actor:
    """Who asks.

    Attributes:
        client: the network address asked from; "" on this machine's command line.
    """

    name: str
    role: Literal["host", "guest"] = "guest"
    client: str = ""


def reject(user: str, error: E) -> E:
    """The error, to be raised; the log of this process keeps who was refused what."""
    log.warning("%r: %s", user, " ".join(part for part in (error.what, error.why) if part))
    return error


class Cost(Protocol):
    """What a run is expected to take."""

    @property
    def seconds(self) -> float | None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def open_ended(self) -> bool: ...


def may_not_change(actor: Actor) -> str:
    """Why the actor may not change what others own; "" where allowed."""
    return "" if actor.role == "host" else LOOK


def may_not_add(actor: Actor) -> str:
    """Why the actor may not add a run; "" where allowed."""
    known = actor.name.startswith(GUEST) and settings().guest_runs > 0
    return "" if actor.role == "host" or known else LOOK


def may_not_cancel(actor: Actor, owner: str) -> str:
    """Why the actor may not cancel a run of `owner`; "" where allowed."""
    if actor.role == "host" or (actor.name.startswith(GUEST) and actor.name == owner):
        return ""
    return OWN if settings().guest_runs else LOOK


def require_host(actor: Actor, deed: str) -> None:
    """Raise `ForbiddenError` unless the actor is a host, `RateLimitError` if it is too fast."""
    _require(actor, deed, may_not_change(actor))
    count_change(actor)


def require_adding(actor: Actor) -> None:
    """Raises `ForbiddenError` unless the actor may add runs of some kind."""
    _require(actor, "add a run", may_not_add(actor))


def require_cancelling(actor: Actor, owners: list[str]) -> None:
    """Raises `ForbiddenError` unless the actor may cancel runs of all `owners`, and
    `RateLimitError` after too many requests."""
    reasons = [may_not_cancel(actor, owner) for owner in owners]
    _require(actor, "cancel this run", next(filter(None, reasons), ""))
    count_change(actor)


def _require(actor: Actor, deed: str, reason: str) -> None:
    if reason:
        raise _forbidden(actor, deed, reason, ASK)


def _forbidden(actor: Actor, deed: str, why: str, do: str) -> ForbiddenError:
    user = f"{actor.name} {actor.client}".strip()
    return reject(user, ForbiddenError(f"{actor.name} may not {deed}.", why, do))


def count_change(actor: Actor) -> None:
    """Raises `RateLimitError` when the actor changes things too fast over the network."""
    if not actor.client:
        return
    try:
        changes.spend(actor.client, settings().changes_per_minute)
    except RateLimitError as error:
        raise reject(actor.client, error) from None


def require_small(actor: Actor, cost: Cost | None, runs: int = 1) -> None:
    """Raises `ForbiddenError` when a guest asks for more than one small run."""
    if actor.role == "host":
        return
    here, deed = settings(), "add this run"
    if runs > 1:
        raise _forbidden(actor, deed, "Guests may add one run at a time.", "Sweep nothing.")
    if cost is None or cost.seconds is None or cost.open_ended:
        raise _forbidden(actor, deed, "How long it takes cannot be told yet.", ASK)
    if cost.seconds > here.guest_seconds:
        took = f"It takes about {cost.seconds:,.0f} s; a guest's may take {here.guest_seconds:,.0f}"
        raise _forbidden(actor, deed, f"{took} s.", "Choose a smaller model or fewer steps.")
    if cost.bytes > here.guest_gb * 1e9:
        took = f"It needs about {cost.bytes / 1e9:.1f} GB; a guest's may use {here.guest_gb:g}"
        raise _forbidden(actor, deed, f"{took} GB.", "Choose a smaller model or fewer segments.")


def require_free(session: Session, actor: Actor) -> None:
    """Raises `ForbiddenError` if a guest already has a run, or guests have all they may
    have. Checked inside the transaction that adds the run, so that of two requests at once only
    one succeeds."""
    if actor.role == "host":
        return
    owners_query = select(Job.owner).where(Job.state.in_([*ACTIVE]), Job.owner.startswith(GUEST))
    owners, deed = session.scalars(owners_query).all(), "add another run"
    if actor.name in owners:
        raise _forbidden(
            actor, deed, "One waits or works already.", "Add the next when it has ended."
        )
    if len(owners) >= settings().guest_runs:
        why = f"Guests have {len(owners)} runs that wait or work; more are not allowed."
        raise _forbidden(actor, deed, why, "Try again when one has ended.")


class RateLimiter:
    """How often each client has asked in the last minute, in the memory of this process."""

    def __init__(self) -> None:
        self._asked: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def spend(self, client: str, most: int) -> None:
        """Counts one request.

        Raises:
            RateLimitError: the client has asked `most` times within a minute.
        """
        now = time.monotonic()
        with self._lock:
            for name in [name for name, times in self._asked.items() if times[-1] < now - MINUTE]:
                del self._asked[name]
            times = self._asked.setdefault(client, deque())
            while times and times[0] < now - MINUTE:
                times.popleft()
            if len(times) >= most:
                why = f"{most} requests a minute are the most."
                wait = f"Try again in {times[0] + MINUTE - now:.0f} s."
                raise RateLimitError("Too many requests.", why, wait)
            times.append(now)


changes = RateLimiter()
