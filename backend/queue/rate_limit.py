"""Rate limits: requests per minute of each client and each visitor, counted in process memory."""

import ipaddress
import threading
import time
from collections import deque

from backend.errors import RateLimitError
from backend.queue.actor import Actor, reject

MINUTE = 60.0
SHARED = 30  # times what one visitor may do in a minute, for all at one address, such as a class
CHANGES_PER_MINUTE = 60
ANSWERS_PER_MINUTE = 6  # of one guest
PREVIEWS_PER_MINUTE = 120  # a form asks for one whenever a field changes


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
