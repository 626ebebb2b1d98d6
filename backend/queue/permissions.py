"""Permissions of hosts and guests.

A host may do everything; a guest may read. If the host allows it, a guest may also add one small
run at a time, at the lowest priority, and cancel it. Functions that change data enforce the
permissions; pages call `may_not_…` only to disable controls with a reason."""

from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.errors import ForbiddenError
from backend.queue import gate
from backend.queue.actor import GUEST, Actor, guest_of, network_of, reject
from backend.settings import settings
from backend.store.dialects.base import NamedLock
from backend.store.session import hold_lock
from backend.store.states import ACTIVE
from backend.store.tables import Job

GUEST_PRIORITY = -1000  # priorities rise by 1 per hour of waiting
GUEST_TOKENS, GUEST_LETTERS = 256, 4000  # tokens of an answer, characters of its conversation
READ_ONLY = "Guests have read-only access."
NO_COOKIE = "Votes need the cookie that this page sets."
ASK = "Ask the person who started Slimscope."


class Cost(Protocol):
    """The estimated cost of a run."""

    @property
    def seconds(self) -> float: ...
    @property
    def bytes(self) -> int: ...
    @property
    def open_ended(self) -> bool: ...


def may_not_change(actor: Actor) -> str:
    """The reason why the actor may not change data; "" if allowed."""
    return "" if actor.role == "host" else READ_ONLY


def may_not_add(actor: Actor) -> str:
    """The reason why the actor may not add a run; "" if allowed."""
    return _may_not(actor, settings().guest_runs)


def may_not_ask(actor: Actor) -> str:
    """The reason why the actor may not ask models or vote on their answers; "" if allowed."""
    return _may_not(actor, settings().guest_answers)


def _may_not(actor: Actor, guests: int) -> str:
    is_allowed_guest = actor.name.startswith(GUEST) and guests > 0
    return "" if actor.role == "host" or is_allowed_guest else READ_ONLY


def may_not_cancel(actor: Actor, owner: str) -> str:
    """The reason why the actor may not cancel a run of `owner`; "" if allowed."""
    if actor.role == "host" or (actor.name.startswith(GUEST) and actor.name == guest_of(owner)):
        return ""
    return "Guests may cancel only their own runs." if settings().guest_runs else READ_ONLY


def require_host(actor: Actor, action: str) -> None:
    """Raise `ForbiddenError` unless the actor is a host; `RateLimitError` for too many changes."""
    require(actor, action, may_not_change(actor))
    gate.changes.spend(actor)


def require_adding(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor may add runs."""
    require(actor, "add a run", may_not_add(actor))


def require_voting(actor: Actor) -> None:
    """Raise `ForbiddenError` unless the actor may vote; `RateLimitError` for too many votes."""
    require(actor, "vote", may_not_ask(actor) or (NO_COOKIE if actor.is_new else ""))
    gate.changes.spend(actor)


def require_cancelling(actor: Actor, owners: list[str]) -> None:
    """Raise `ForbiddenError` unless the actor may cancel runs of all `owners`; counts it."""
    reasons = [
        may_not_cancel(actor, owner) for owner in owners or [""]
    ]  # without owners: not their own
    require(actor, "cancel this run", next(filter(None, reasons), ""))
    gate.changes.spend(actor)


def require(actor: Actor, action: str, reason: str) -> None:
    """Raise `ForbiddenError` if there is a reason why the actor may not do something."""
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
    if cost is None or cost.open_ended:
        raise _forbidden(actor, action, "Its duration cannot be estimated yet.", ASK)
    if cost.seconds > limits.guest_seconds:
        raise _forbidden(
            actor,
            action,
            f"It takes about {cost.seconds:,.0f} s; the limit is {limits.guest_seconds:,.0f} s.",
            "Choose a smaller model or fewer steps.",
        )
    if cost.bytes > limits.guest_gb * 1e9:
        raise _forbidden(
            actor,
            action,
            f"It needs about {cost.bytes / 1e9:.1f} GB; the limit is {limits.guest_gb:g} GB.",
            "Choose a smaller model or fewer segments.",
        )


def require_asking(actor: Actor, letters: int, tokens: int) -> None:
    """Raise `ForbiddenError` unless the actor may ask for an answer of this size.

    Guests may ask for short answers to short prompts.

    Args:
        letters: characters of the prompt.
        tokens: maximum number of tokens of the answer.
    """
    action = "ask for this answer"
    require(actor, action, may_not_ask(actor))
    if actor.role == "host":
        return
    if tokens > GUEST_TOKENS:
        raise _forbidden(
            actor,
            action,
            f"It may have {tokens} tokens; the limit for guests is {GUEST_TOKENS}.",
            "Choose fewer tokens.",
        )
    if letters > GUEST_LETTERS:
        raise _forbidden(
            actor,
            action,
            f"The prompt has {letters} characters; guests may send {GUEST_LETTERS}.",
            "Shorten the prompt, or begin a new chat.",
        )


def require_free(session: Session, actor: Actor) -> None:
    """The last check of a new run, inside the transaction that adds it, so that only one of two
    concurrent requests succeeds; it also counts as a change.

    Raises:
        ForbiddenError: the guest already has an active run, all guests have reached their limit, or
            guests at the same network address half of it (rounded up), as a guest who deletes the
            cookie counts as a new one.
        RateLimitError: too many changes.
    """
    if actor.role == "host":
        gate.changes.spend(actor)
        return
    hold_lock(session, NamedLock.GUESTS)
    owners_query = select(Job.owner).where(Job.state.in_([*ACTIVE]), Job.owner.startswith(GUEST))
    owners, action = session.scalars(owners_query).all(), "add another run"
    if actor.name in map(guest_of, owners):
        raise _forbidden(
            actor, action, "You already have an active run.", "Wait until it has ended."
        )
    limit = settings().guest_runs
    network, network_limit = network_of(actor.name), (limit + 1) // 2
    neighbors = [owner for owner in owners if network_of(owner) == network]
    if network and len(neighbors) >= network_limit:
        raise _forbidden(
            actor,
            action,
            f"Guests at your network address have {network_limit} of {limit} runs.",
            "Try again when one has ended.",
        )
    if len(owners) >= limit:
        raise _forbidden(
            actor,
            action,
            f"Guests already have {len(owners)} active runs, the maximum.",
            "Try again when one has ended.",
        )
    gate.changes.spend(actor)
