"""Whose requests are worked on now. Python computes in one thread at a time, so a client that asks
for much would slow down everybody else: each visitor, each address, and all together have a few
requests at work, and the others wait in line. A visitor is a session of one address. Those without
one are one visitor; where guests get no session, they share what their address has.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio

from backend.errors import RateLimitError
from backend.queue.actor import Actor, is_unnamed
from backend.queue.permissions import gives_names
from backend.queue.rate_limit import client_network

PER_VISITOR, PER_ADDRESS, TOTAL_AT_WORK = 3, 12, 24  # at work at the same time
EVERYBODY = "*"  # the line of all, which is no address
MAX_WAITING = 48  # of a visitor; a browser sends six requests at once for each of its windows
MAX_WAITING_UNNAMED = 240  # at one address: a class that arrives


class Admission:
    """Requests at work, and those in line. For one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, anyio.CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, actor: Actor) -> AsyncIterator[AsyncExitStack]:
        """Waits until one more request of that visitor may be worked on, until the end of the body
        or until what it yields is closed.

        Raises:
            RateLimitError: too many wait already.
        """
        address = client_network(actor.client)
        visitor, unnamed = f"{address} {actor.name}", is_unnamed(actor)
        own = PER_ADDRESS if unnamed and not gives_names() else PER_VISITOR
        most = MAX_WAITING_UNNAMED if unnamed else MAX_WAITING
        if self._line(visitor, own).statistics().tasks_waiting >= most:
            why = f"{most} others like it wait for an answer."
            raise RateLimitError("Too many requests.", why, "Wait until they are answered.")
        async with AsyncExitStack() as taken:
            for name, most in ((visitor, own), (address, PER_ADDRESS), (EVERYBODY, TOTAL_AT_WORK)):
                await self._take(name, most, taken)
            yield taken

    async def _take(self, name: str, most: int, taken: AsyncExitStack) -> None:
        line, borrower = self._line(name, most), object()
        try:
            await line.acquire_on_behalf_of(borrower)
        finally:
            self._forget(name)
        taken.callback(self._forget, name)
        taken.callback(line.release_on_behalf_of, borrower)

    def _line(self, name: str, most: int) -> anyio.CapacityLimiter:
        return self._lines.setdefault(name, anyio.CapacityLimiter(most))

    def _forget(self, name: str) -> None:
        """Keeps nothing of who has no request at work or in line."""
        with suppress(KeyError):
            state = self._lines[name].statistics()
            if not state.borrowed_tokens and not state.tasks_waiting:
                del self._lines[name]
