"""Limits on the requests of each visitor: how many are active at once, how many wait, and how many
start per minute.

Requests, answers, changes, previews and logins all pass through here. Limits apply to addresses
first and to visitors second, so opening many sessions or dropping cookies gains nothing. Hosts have
a separate share. Where visitors of one network share an address (a room behind a router or proxy)
and the host lists that network in the settings, each of its visitors counts as an address.

`Gate` limits simultaneous requests, `Rate` limits requests per minute. Both live in the memory of
one process.
"""

import asyncio
import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from backend.errors import OverloadError, RateLimitError
from backend.queue.actor import Actor, is_unnamed, reject
from backend.settings import settings

WINDOW_S = 60.0
ADDRESS_FACTOR = 30  # limit of an address (such as a classroom) / limit of one visitor
CHANGES_PER_MINUTE = 60
ANSWERS_PER_MINUTE = 6  # per guest
LOGINS_PER_MINUTE = 10
PREVIEWS_PER_MINUTE = 120  # a form requests one whenever a field changes
MAX_REQUESTS = 24  # active at once; Python computes in one thread at a time
MAX_REQUESTS_PER_VISITOR = 3
MAX_WAITING_PER_VISITOR = 48  # a browser sends six requests at once for each of its windows
MAX_WAITING_UNNAMED = 240  # requests without a cookie from one address: a class that arrives
MAX_EVENTS_PER_VISITOR, MAX_EVENTS_PER_ADDRESS = 8, 32  # event handler calls in Gradio's queue
MAX_ANSWERS_PER_GUEST, MAX_HOST_ANSWERS = 4, 256  # active at once
RETRY_S = 5.0  # delay after which a refused client tries again
USAGE_HALF_LIFE_S = 30.0  # half-life of the recorded usage of an address


def client_network(address: str) -> str:
    """The network that counts as one client: an IPv4 address, or the /64 network of an IPv6
    address, because a client may choose any address within it."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:  # IPv4, or no address
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


def address_key(actor: Actor) -> str:
    """The key of an actor's address. In `room_networks`, each visitor has a separate key."""
    network = client_network(actor.client)
    if actor.role == "host":
        return f"host {network}"
    return f"{network} {actor.name}" if in_room(actor.client) and not actor.is_new else network


def in_room(client: str) -> bool:
    """Return True if the address is in one of the `room_networks` of the settings."""
    networks = settings().room_networks
    try:
        address = ipaddress.ip_address(client) if networks else None
    except ValueError:
        return False
    return address is not None and any(address in network for network in networks)


def visitor_key(actor: Actor) -> str:
    """The key of a visitor. All visitors of an address whose requests came without a cookie share
    one key."""
    return f"{address_key(actor)} {'' if actor.is_new else actor.name}"


# simultaneous requests ----------------------------------------------------------------------------


@dataclass(eq=False)
class Ticket:
    """One active or waiting request of a gate."""

    address: str
    visitor: str
    limit: int  # active requests of this visitor
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """A limit on simultaneous requests, shared between addresses. For one event loop.

    An address may use half of the slots, and more only while no other address waits or was just
    refused. An address below its half is admitted even if others use more than theirs, so up to one
    and a half times the number of slots can be in use.

    Args:
        slots: returns the number of slots; a function, because settings may change.
    """

    def __init__(self, slots: Callable[[], int]) -> None:
        self._slots = slots
        self._active: list[Ticket] = []
        self._waiting: list[Ticket] = []
        self._refused_at: dict[str, float] = {}  # address -> monotonic seconds
        self._usage: dict[str, tuple[float, float]] = {}  # address -> seconds used, measured at

    @asynccontextmanager
    async def slot(
        self, actor: Actor, limit: int, max_waiting: int = 0
    ) -> AsyncIterator[AsyncExitStack]:
        """Wait for a slot, and hold it until the body ends or the yielded stack is closed.

        Args:
            actor: sender of the request.
            limit: maximum number of active requests of one visitor.
            max_waiting: maximum number of waiting requests of one visitor.

        Raises:
            OverloadError: the visitor has `max_waiting` requests waiting already.
        """
        ticket = Ticket(address_key(actor), visitor_key(actor), limit)
        if self._admits(ticket):
            self._active.append(ticket)
        elif _count(self._waiting, ticket.visitor) < max_waiting:
            await self._wait(ticket)
        else:
            raise self._refuse(ticket)
        start = time.monotonic()
        async with AsyncExitStack() as held_slot:
            held_slot.callback(self._release, ticket, start)
            yield held_slot

    def _refuse(self, ticket: Ticket) -> OverloadError:
        requests_ahead = self._active + self._waiting
        visitor_requests = _count(requests_ahead, ticket.visitor)
        remedy = "Wait until they are answered."
        if visitor_requests < ticket.limit:  # requests of other visitors use the slots
            self._refused_at[ticket.address] = time.monotonic()
            remedy = "Try again in a few seconds."
        return OverloadError(
            "Too many requests are waiting.",
            f"{len(requests_ahead)} are ahead of this one, {visitor_requests} of them yours.",
            remedy,
            retry_after_s=RETRY_S,
            requests_ahead=len(requests_ahead),
        )

    def _admits(self, ticket: Ticket) -> bool:
        if _count(self._active, ticket.visitor) >= ticket.limit:
            return False
        used = Counter(active.address for active in self._active)
        slots = self._slots()
        half = (slots + 1) // 2
        if used[ticket.address] < half:
            return sum(min(count, half) for count in used.values()) < slots
        now = time.monotonic()
        self._refused_at = {
            address: refused_at
            for address, refused_at in self._refused_at.items()
            if now - refused_at < 2 * RETRY_S
        }
        competing = {waiting.address for waiting in self._waiting} | self._refused_at.keys()
        return used.total() < slots and not competing - {ticket.address}

    async def _wait(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        try:
            await ticket.admitted.wait()
        except BaseException:
            for tickets in (self._waiting, self._active):  # it may have been admitted meanwhile
                if ticket in tickets:
                    tickets.remove(ticket)
            self._admit_waiting()
            raise

    def _release(self, ticket: Ticket, start: float) -> None:
        self._active.remove(ticket)
        self._refused_at.pop(ticket.address, None)
        now = time.monotonic()
        usage = {address: self._recent_usage(address, now) for address in self._usage}
        usage[ticket.address] = usage.get(ticket.address, 0.0) + now - start
        self._usage = {
            address: (seconds, now) for address, seconds in usage.items() if seconds > 0.001
        }
        self._admit_waiting()

    def _recent_usage(self, address: str, now: float) -> float:
        """Seconds that requests of an address were active, halved every `USAGE_HALF_LIFE_S`."""
        seconds, measured_at = self._usage.get(address, (0.0, now))
        return seconds * 0.5 ** ((now - measured_at) / USAGE_HALF_LIFE_S)

    def _admit_waiting(self) -> None:
        """Give free slots to waiting requests, those of the address with the least usage first."""
        now = time.monotonic()
        by_usage = sorted(
            self._waiting, key=lambda waiting: self._recent_usage(waiting.address, now)
        )
        for ticket in by_usage:
            if self._admits(ticket):
                self._waiting.remove(ticket)
                self._active.append(ticket)
                ticket.admitted.set()


def _count(tickets: list[Ticket], visitor: str) -> int:
    return sum(ticket.visitor == visitor for ticket in tickets)


requests = Gate(lambda: MAX_REQUESTS)
guest_answers = Gate(lambda: settings().guest_answers)
host_answers = Gate(lambda: MAX_HOST_ANSWERS)


def request_slot(actor: Actor) -> AbstractAsyncContextManager[AsyncExitStack]:
    """Wait for a slot for one request."""
    if is_unnamed(actor) and not settings().names_guests:
        return requests.slot(actor, (MAX_REQUESTS + 1) // 2, MAX_WAITING_UNNAMED)
    max_waiting = MAX_WAITING_UNNAMED if is_unnamed(actor) else MAX_WAITING_PER_VISITOR
    return requests.slot(actor, MAX_REQUESTS_PER_VISITOR, max_waiting)


def answer_slot(actor: Actor) -> AbstractAsyncContextManager[AsyncExitStack]:
    """Take a slot for one answer of a model; raise `OverloadError` if none is free."""
    if actor.role == "host":
        return host_answers.slot(actor, MAX_HOST_ANSWERS)
    return guest_answers.slot(actor, MAX_ANSWERS_PER_GUEST)


def require_short_queue(actor: Actor, queued: Iterable[Actor]) -> None:
    """Raise `RateLimitError` if the visitor or its address has too many calls in a queue.

    Args:
        actor: sender of a new call.
        queued: senders of the calls in the queue.
    """
    same_address = [sender for sender in queued if address_key(sender) == address_key(actor)]
    same_visitor = [
        sender for sender in same_address if sender.name == actor.name and not is_unnamed(sender)
    ]
    if len(same_visitor) >= MAX_EVENTS_PER_VISITOR or len(same_address) >= MAX_EVENTS_PER_ADDRESS:
        raise RateLimitError("Too many requests.", "", "Wait until earlier requests are done.")


# requests per minute ------------------------------------------------------------------------------


class Rate:
    """A limit on the requests that each visitor, and each address, starts within a minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def spend(self, actor: Actor, *, spend: bool = True) -> None:
        """Count a request. Users of the local command line are not limited.

        Args:
            actor: sender of the request.
            spend: False to check the limits without counting.

        Raises:
            RateLimitError: the visitor started `limit` requests in the last minute, or its address
                `ADDRESS_FACTOR` times as many.
        """
        if not actor.client:
            return
        limits = {
            visitor_key(actor): self.limit,
            address_key(actor): self.limit * ADDRESS_FACTOR,
        }
        try:
            self.spend_by(limits, spend)
        except RateLimitError as error:
            raise reject(actor.client, error) from None

    def spend_by(self, limits: Mapping[str, int], spend: bool = True) -> None:
        """Count a request under each key of `limits`; raise `RateLimitError` if one is at its
        limit."""
        now = time.monotonic()
        with self._lock:
            for key in [key for key, times in self._times.items() if times[-1] < now - WINDOW_S]:
                del self._times[key]
            for key, limit in limits.items():
                times = self._times.get(key, deque())
                while times and times[0] < now - WINDOW_S:
                    times.popleft()
                if len(times) >= limit:
                    raise RateLimitError(
                        "Too many requests.",
                        f"The limit is {limit} requests per minute.",
                        f"Try again in {times[0] + WINDOW_S - now:.0f} s.",
                    )
            for key in limits if spend else ():
                self._times.setdefault(key, deque()).append(now)


changes, previews = Rate(CHANGES_PER_MINUTE), Rate(PREVIEWS_PER_MINUTE)
answers, logins = Rate(ANSWERS_PER_MINUTE), Rate(LOGINS_PER_MINUTE)


def count_answer(actor: Actor, *, spend: bool = True) -> None:
    """Count an answer to a guest; raise `RateLimitError` if there are too many. `spend`: see
    `Rate.spend`."""
    if actor.role != "host":
        answers.spend(actor, spend=spend)
