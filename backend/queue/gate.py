"""The gate: how much of this dashboard each visitor may take, and who waits.

Everything a visitor asks for passes here: requests, answers, changes, previews, logins. It is
shared by address first, then by visitor, so that who opens many sessions or drops cookies gains
nothing. Hosts have a share of their own. Where the host names a network whose visitors come from
one address (a room behind a router or a proxy), each of its visitors counts as an address.

`Gate` limits what is at work at the same time, `Rate` what is begun within a minute. Both live in
the memory of one process.
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

MINUTE = 60.0
SHARED = 30  # times what one visitor may do in a minute, for all at one address, such as a class
CHANGES_PER_MINUTE = 60
ANSWERS_PER_MINUTE = 6  # of one guest
LOGINS_PER_MINUTE = 10
PREVIEWS_PER_MINUTE = 120  # a form asks for one whenever a field changes
REQUESTS, REQUESTS_OF_A_VISITOR = 24, 3  # at work; Python computes in one thread at a time
WAITING = 48  # requests of a visitor; a browser sends six at once for each of its windows
WAITING_OF_STRANGERS = 240  # requests at one address without a cookie: a class that arrives
EVENTS_OF_A_VISITOR, EVENTS_OF_AN_ADDRESS = 8, 32  # calls of pages that wait in Gradio's queue
ANSWERS_OF_A_GUEST, ANSWERS_OF_HOSTS = 4, 256  # at the same time
RETRY_S = 5.0  # until who was refused asks again
FORGET_S = 30.0  # half-life of the time an address has taken


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


def address_of(actor: Actor) -> str:
    """The address that shares are counted by; in a network of `room_networks`, the visitor."""
    network = client_network(actor.client)
    if actor.role == "host":
        return f"host {network}"
    return f"{network} {actor.name}" if in_room(actor.client) and not actor.is_new else network


def in_room(client: str) -> bool:
    """Return True if many visitors share this address, according to the settings."""
    networks = settings().room_networks
    try:
        address = ipaddress.ip_address(client) if networks else None
    except ValueError:
        return False
    return address is not None and any(address in network for network in networks)


def visitor_of(actor: Actor) -> str:
    """A visitor of an address; those whose cookie did not come with the request are one."""
    return f"{address_of(actor)} {'' if actor.is_new else actor.name}"


# at work at the same time -------------------------------------------------------------------------


@dataclass(eq=False)
class Entrant:
    """One use of a gate, at work or waiting."""

    address: str
    visitor: str
    most: int  # at work for this visitor
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """Places for what is at work at the same time, shared by address. For one event loop.

    An address has half of the places; more than that only while nobody of another address waits or
    was just refused. An address below its half is let in even while others have borrowed the rest,
    so at most one and a half times as many places as there are can be in use.

    Args:
        places: how many; a function, as settings may change.
    """

    def __init__(self, places: Callable[[], int]) -> None:
        self._places = places
        self._working: list[Entrant] = []
        self._waiting: list[Entrant] = []
        self._refused: dict[str, float] = {}  # address -> when
        self._time_taken: dict[str, tuple[float, float]] = {}  # address -> seconds, as of when

    @asynccontextmanager
    async def place(
        self, actor: Actor, most: int, waiting: int = 0
    ) -> AsyncIterator[AsyncExitStack]:
        """A place, once there is one, until the end of the body or until what it yields is closed.
        `most`: places of one visitor; `waiting`: how many requests of one visitor may wait.

        Raises:
            OverloadError: too many wait already, or none may.
        """
        entrant = Entrant(address_of(actor), visitor_of(actor), most)
        if self._admits(entrant):
            self._working.append(entrant)
        else:
            own = _count(self._waiting, entrant.visitor)
            if own >= waiting:
                mine = _count(self._working, entrant.visitor) + own
                before, do = len(self._working + self._waiting), "Wait until they are answered."
                if mine < entrant.most:  # others are in the way
                    self._refused[entrant.address] = time.monotonic()
                    do = "Try again in a few seconds."
                raise OverloadError(
                    "It is not your turn.",
                    f"{before} are before you, {mine} of them yours.",
                    do,
                    retry_after_s=RETRY_S,
                    before=before,
                )
            await self._wait(entrant)
        began = time.monotonic()
        async with AsyncExitStack() as taken:
            taken.callback(self._release, entrant, began)
            yield taken

    def _admits(self, entrant: Entrant) -> bool:
        if _count(self._working, entrant.visitor) >= entrant.most:
            return False
        used = Counter(each.address for each in self._working)
        places = self._places()
        half = (places + 1) // 2
        if used[entrant.address] < half:
            return sum(min(count, half) for count in used.values()) < places
        now = time.monotonic()
        self._refused = {a: at for a, at in self._refused.items() if now - at < 2 * RETRY_S}
        others = {each.address for each in self._waiting} | self._refused.keys()
        return used.total() < places and not others - {entrant.address}

    async def _wait(self, entrant: Entrant) -> None:
        self._waiting.append(entrant)
        try:
            await entrant.turn.wait()
        except BaseException:
            for entrants in (self._waiting, self._working):  # its turn may have come as it left
                if entrant in entrants:
                    entrants.remove(entrant)
            self._call_next()
            raise

    def _release(self, entrant: Entrant, began: float) -> None:
        self._working.remove(entrant)
        self._refused.pop(entrant.address, None)
        now = time.monotonic()
        taken = {address: self._taken(address, now) for address in self._time_taken}
        taken[entrant.address] = taken.get(entrant.address, 0.0) + now - began
        self._time_taken = {a: (seconds, now) for a, seconds in taken.items() if seconds > 0.001}
        self._call_next()

    def _taken(self, address: str, now: float) -> float:
        """Seconds that requests of an address took, halved every `FORGET_S`."""
        seconds, at = self._time_taken.get(address, (0.0, now))
        return seconds * 0.5 ** ((now - at) / FORGET_S)

    def _call_next(self) -> None:
        """Gives free places to those who wait: first to the address that has taken least time."""
        now = time.monotonic()
        by_time = sorted(self._waiting, key=lambda each: self._taken(each.address, now))
        for entrant in by_time:
            if self._admits(entrant):
                self._waiting.remove(entrant)
                self._working.append(entrant)
                entrant.turn.set()


def _count(entrants: list[Entrant], visitor: str) -> int:
    return sum(each.visitor == visitor for each in entrants)


requests = Gate(lambda: REQUESTS)
guest_answers = Gate(lambda: settings().guest_answers)
host_answers = Gate(lambda: ANSWERS_OF_HOSTS)


def place_of_request(actor: Actor) -> AbstractAsyncContextManager[AsyncExitStack]:
    """A place for one request, for which its visitor waits in line."""
    if is_unnamed(actor) and not settings().names_guests:
        return requests.place(actor, (REQUESTS + 1) // 2, WAITING_OF_STRANGERS)
    waiting = WAITING_OF_STRANGERS if is_unnamed(actor) else WAITING
    return requests.place(actor, REQUESTS_OF_A_VISITOR, waiting)


def place_of_answer(actor: Actor) -> AbstractAsyncContextManager[AsyncExitStack]:
    """A place for one answer of a model."""
    if actor.role == "host":
        return host_answers.place(actor, ANSWERS_OF_HOSTS)
    return guest_answers.place(actor, ANSWERS_OF_A_GUEST)


def require_short_queue(actor: Actor, queued: Iterable[Actor]) -> None:
    """Raise `RateLimitError` where the visitor or the address has as many calls in a queue as it
    may; `queued`: who sent those in it."""
    near = [each for each in queued if address_of(each) == address_of(actor)]
    own = [each for each in near if each.name == actor.name and not is_unnamed(each)]
    if len(own) >= EVENTS_OF_A_VISITOR or len(near) >= EVENTS_OF_AN_ADDRESS:
        raise RateLimitError("Too many requests.", "", "Wait until what you asked for is done.")


# begun within a minute ----------------------------------------------------------------------------


class Rate:
    """Counts what each visitor, and each address, has begun in the last minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._times: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def spend(self, actor: Actor, *, spend: bool = True) -> None:
        """Count one; raise `RateLimitError` if the visitor had `most` in the last minute, or its
        address `SHARED` times as many. Whoever is at this machine is not limited. `spend`: False:
        only look whether one more would be too many."""
        if not actor.client:
            return
        limits = {visitor_of(actor): self.most, address_of(actor): self.most * SHARED}
        try:
            self.spend_by(limits, spend)
        except RateLimitError as error:
            raise reject(actor.client, error) from None

    def spend_by(self, limits: Mapping[str, int], spend: bool = True) -> None:
        """The same for names with the most of each."""
        now = time.monotonic()
        with self._lock:
            for name in [name for name, times in self._times.items() if times[-1] < now - MINUTE]:
                del self._times[name]
            for name, limit in limits.items():
                times = self._times.get(name, deque())
                while times and times[0] < now - MINUTE:
                    times.popleft()
                if len(times) >= limit:
                    raise RateLimitError(
                        "Too many requests.",
                        f"The limit is {limit} requests per minute.",
                        f"Try again in {times[0] + MINUTE - now:.0f} s.",
                    )
            for name in limits if spend else ():
                self._times.setdefault(name, deque()).append(now)


changes, previews = Rate(CHANGES_PER_MINUTE), Rate(PREVIEWS_PER_MINUTE)
answers, logins = Rate(ANSWERS_PER_MINUTE), Rate(LOGINS_PER_MINUTE)


def count_answer(actor: Actor, *, spend: bool = True) -> None:
    """Count an answer to a guest; raise `RateLimitError` at too many. `spend`: see `Rate.spend`."""
    if actor.role != "host":
        answers.spend(actor, spend=spend)
