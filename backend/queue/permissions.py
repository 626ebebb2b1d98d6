"""Permissions: a host may do everything, a guest read; if the host allows it, a guest may add one
small run at a time, at the lowest priority, and cancel it. Enforced by the functions that change
data; pages call `may_not_…` only to disable controls with a reason. Requests per minute of each
client and each visitor are limited, and counted in process memory."""

import ipaddress
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import ForbiddenError, RateLimitError, SlimscopeError
from backend.printable import one_line
from backend.settings import settings
from backend.store.dialects.base import NamedLock
from backend.store.session import alone
from backend.store.states import ACTIVE
from backend.store.tables import Job

GUEST = "guest-"  # name prefix of guests that can be identified
ALIAS_LETTERS = 40
log = logging.getLogger("slimscope.refused")

E = TypeVar("E", bound=SlimscopeError)
MINUTE = 60.0
SHARED = 30  # times what one visitor may do in a minute, for all at one address, such as a class
CHANGES_PER_MINUTE = 60
ANSWERS_PER_MINUTE = 6  # of one guest
PREVIEWS_PER_MINUTE = 120  # a form asks for one whenever a field changes
GUEST_PRIORITY = -1000  # priorities rise by 1 per hour of waiting
GUEST_TOKENS, GUEST_LETTERS = 256, 4000  # of an answer; of the conversation before it
READ_ONLY = "Guests have read-only access."
OWN_RUNS = "Guests may cancel only their own runs."
ASK = "Ask the person who started Slimscope."


@dataclass(frozen=True)
class Actor:
    """The user behind a request. `client`: network address; "" on the local command line. `alias`:
    the name a guest gave themselves, which proves nothing."""

    name: str
    role: Literal["host", "guest"] = "guest"
    client: str = ""
    alias: str = ""

    @property
    def signature(self) -> str:
        """Name and alias, as stored with what they do."""
        return f"{self.name} {self.alias}".strip()


def guest_name(network: str, guest: str) -> str:
    """The name of a guest, from the ids of their network address and of themselves."""
    return f"{GUEST}{network}-{guest}"


def guest_of(owner: str) -> str:
    """The name in a signature, without the alias."""
    return owner.partition(" ")[0]


def network_of(owner: str) -> str:
    """The id of the network address in the signature of a guest."""
    return guest_of(owner).removeprefix(GUEST).rpartition("-")[0]


def with_alias(actor: Actor, text: str) -> Actor:
    """A guest with an alias: one line of up to `ALIAS_LETTERS` printable characters."""
    if actor.role == "host" or not actor.name.startswith(GUEST):
        return actor
    return replace(actor, alias=one_line(text)[:ALIAS_LETTERS].strip())


def is_unnamed(actor: Actor) -> bool:
    """Whether this guest cannot be told from others at the same address."""
    return actor.role == "guest" and not actor.name.startswith(GUEST)


def reject(user: str, error: E) -> E:
    """Log a rejected request with its user, and return the error to raise."""
    log.warning("%r: %s", user, " ".join(part for part in (error.what, error.why) if part))
    return error


def client_network(address: str) -> str:
    """The network that counts as one client: an address, or the /64 network of an IPv6 address, in
    which a client may choose."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:  # IPv4, or no address
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


class RateLimiter:
    """Counts the requests of each client, and of each visitor of a client, in the last minute."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def spend(self, client: str, most: int, visitor: str = "", *, spend: bool = True) -> None:
        """Count one request; `RateLimitError` if there were `most` in the last minute. `visitor`:
        who of those at this address; all of them have `SHARED` times as many. `spend`: False: only
        look whether one more would be too many."""
        client, now = client_network(client), time.monotonic()
        limits = {f"{client} {visitor}": most, client: most * SHARED} if visitor else {client: most}
        with self._lock:
            for name in [name for name, times in self._times.items() if times[-1] < now - MINUTE]:
                del self._times[name]
            for name, limit in limits.items():
                times = self._times.get(name, deque())
                while times and times[0] < now - MINUTE:
                    times.popleft()
                if len(times) >= limit:
                    why = f"The limit is {limit} requests per minute."
                    wait = f"Try again in {times[0] + MINUTE - now:.0f} s."
                    raise RateLimitError("Too many requests.", why, wait)
            for name in limits if spend else ():
                self._times.setdefault(name, deque()).append(now)


changes, previews, answers = RateLimiter(), RateLimiter(), RateLimiter()


def count_change(actor: Actor) -> None:
    """Raise `RateLimitError` if the actor sends too many changes over the network."""
    _count(actor, changes, CHANGES_PER_MINUTE)


def require_changes_left(actor: Actor) -> None:
    """Raise `RateLimitError` if one more change would be too many. What is refused, for whatever
    reason, does not count: `permissions.require_free` counts what is accepted."""
    _count(actor, changes, CHANGES_PER_MINUTE, spend=False)


def count_preview(actor: Actor) -> None:
    """Raise `RateLimitError` if the actor has too many runs estimated over the network."""
    _count(actor, previews, PREVIEWS_PER_MINUTE)


def count_answer(actor: Actor, *, spend: bool = True) -> None:
    """Raise `RateLimitError` if a guest asks for too many answers over the network. `spend`: False:
    only look."""
    if actor.role != "host":
        _count(actor, answers, ANSWERS_PER_MINUTE, spend=spend)


def _count(actor: Actor, limiter: RateLimiter, most: int, *, spend: bool = True) -> None:
    if not actor.client:
        return
    try:
        limiter.spend(actor.client, most, actor.name, spend=spend)
    except RateLimitError as error:
        raise reject(actor.client, error) from None


class Cost(Protocol):
    """The estimated cost of a run."""

    @property
    def seconds(self) -> float | None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def open_ended(self) -> bool: ...


def may_not_change(actor: Actor) -> str:
    """The reason why the actor may not change data; "" if allowed."""
    return "" if actor.role == "host" else READ_ONLY


def may_not_add(actor: Actor) -> str:
    """The same for adding a run."""
    return _may_not(actor, settings().guest_runs)


def may_not_ask(actor: Actor) -> str:
    """The same for asking models, and for voting on their answers."""
    return _may_not(actor, settings().guest_answers)


def _may_not(actor: Actor, guests: int) -> str:
    known = actor.name.startswith(GUEST) and guests > 0
    return "" if actor.role == "host" or known else READ_ONLY


def gives_names() -> bool:
    """Whether guests may do anything, so that each needs a name."""
    return bool(settings().guest_runs or settings().guest_answers)


def may_not_cancel(actor: Actor, owner: str) -> str:
    """The same for cancelling a run of `owner`."""
    if actor.role == "host" or (actor.name.startswith(GUEST) and actor.name == guest_of(owner)):
        return ""
    return OWN_RUNS if settings().guest_runs else READ_ONLY


def require_host(actor: Actor, action: str) -> None:
    """Raise `ForbiddenError` unless the actor is a host, `RateLimitError` at too many requests."""
    require(actor, action, may_not_change(actor))
    count_change(actor)


def require_adding(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor may add runs."""
    require(actor, "add a run", may_not_add(actor))


def require_voting(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor may vote, `RateLimitError` at too many requests."""
    require(actor, "vote", may_not_ask(actor))
    count_change(actor)


def require_cancelling(actor: Actor, owners: list[str]) -> None:
    """Raise `ForbiddenError` unless the actor may cancel runs of all `owners`; counts it."""
    reasons = [may_not_cancel(actor, owner) for owner in owners or [""]]  # none: nobody's own
    require(actor, "cancel this run", next(filter(None, reasons), ""))
    count_change(actor)


def require(actor: Actor, action: str, reason: str) -> None:
    if reason:
        raise _forbidden(actor, action, reason, ASK)


def _forbidden(actor: Actor, action: str, why: str, do: str) -> ForbiddenError:
    user = f"{actor.name} {actor.client}".strip()
    return reject(user, ForbiddenError(f"{actor.name} may not {action}.", why, do))


def require_small(actor: Actor, cost: Cost | None, runs: int = 1) -> None:
    """Raise `ForbiddenError` if a guest adds more than one run, or one above the limits."""
    if actor.role == "host":
        return
    limits, action = settings(), "add this run"
    if runs > 1:
        raise _forbidden(actor, action, "Guests may add one run at a time.", "Use single values.")
    if cost is None or cost.seconds is None or cost.open_ended:
        raise _forbidden(actor, action, "Its duration cannot be estimated yet.", ASK)
    if cost.seconds > limits.guest_seconds:
        why = f"It takes about {cost.seconds:,.0f} s; the limit is {limits.guest_seconds:,.0f} s."
        raise _forbidden(actor, action, why, "Choose a smaller model or fewer steps.")
    if cost.bytes > limits.guest_gb * 1e9:
        why = f"It needs about {cost.bytes / 1e9:.1f} GB; the limit is {limits.guest_gb:g} GB."
        raise _forbidden(actor, action, why, "Choose a smaller model or fewer segments.")


def require_asking(actor: Actor, letters: int, tokens: int) -> None:
    """Raise `ForbiddenError` unless the actor may ask for an answer of up to `tokens` tokens to a
    prompt of so many `letters`: a guest for a short answer to a short prompt."""
    action = "ask for this answer"
    require(actor, action, may_not_ask(actor))
    if actor.role == "host":
        return
    if tokens > GUEST_TOKENS:
        why = f"It may have {tokens} tokens; the limit for guests is {GUEST_TOKENS}."
        raise _forbidden(actor, action, why, "Choose fewer tokens.")
    if letters > GUEST_LETTERS:
        why = f"The prompt has {letters} characters; guests may send {GUEST_LETTERS}."
        raise _forbidden(actor, action, why, "Shorten the prompt, or begin a new chat.")


def require_free(session: Session, actor: Actor) -> None:
    """The last check of a run that is added, and its count: whether there is room for it. Inside
    the transaction that adds it, so that only one of two concurrent requests succeeds."""
    _require_room(session, actor)
    count_change(actor)


def _require_room(session: Session, actor: Actor) -> None:
    """Raise `ForbiddenError` if the guest already has an active run, or guests have reached their
    limit, or those at the same address half of it (rounded up): who drops the cookie is another
    guest."""
    if actor.role == "host":
        return
    alone(session, NamedLock.GUESTS)
    owners_query = select(Job.owner).where(Job.state.in_([*ACTIVE]), Job.owner.startswith(GUEST))
    owners, action = session.scalars(owners_query).all(), "add another run"
    if actor.name in map(guest_of, owners):
        raise _forbidden(
            actor, action, "You already have an active run.", "Wait until it has ended."
        )
    every = settings().guest_runs
    network, most = network_of(actor.name), (every + 1) // 2
    if network and len([owner for owner in owners if network_of(owner) == network]) >= most:
        why = f"Guests at your network address have {most} of {every} runs."
        raise _forbidden(actor, action, why, "Try again when one has ended.")
    if len(owners) >= every:
        why = f"Guests already have {len(owners)} active runs, the maximum."
        raise _forbidden(actor, action, why, "Try again when one has ended.")
