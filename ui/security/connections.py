"""How many connections clients may hold open, and for how long a request may be half-sent.

Uvicorn limits the size of headers (16 kB), and closes connections that are idle between two
requests, but waits forever for the rest of a request. Here a request has to be complete, headers
and body, within 30 s. Where a client, or all clients together, hold too many connections, the
oldest one that waits for the rest of its request, or for the next, is closed; so those who send
whole requests are served while others hold connections open. Answers may take as long as they
need.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from backend.queue.roles import client_network

MAX_PER_CLIENT = 256  # a browser opens six; all visitors behind a proxy are one client
MAX_CONNECTIONS = 4096
MAX_FILES = 65_536
WAITING = (h11.IDLE, h11.SEND_BODY)  # states of a client that owes us part of a request


class GuardedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with a deadline for requests, and with `limits`.

    Requests find the address of the connection as `peer` in their state: `client` may come from the
    header of a proxy. WebSockets, which no page uses, are not offered.
    """

    request_seconds: ClassVar[float] = 30.0
    limits: ClassVar[ConnectionLimits]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.ws_protocol_class = None
        self.peer = self.client[0] if self.client else ""
        self.app_state = {**self.app_state, "peer": self.peer}
        self._deadline: asyncio.TimerHandle | None = None
        self._watch()
        self.limits.admit(self)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.release(self)
        self._cancel_deadline()
        super().connection_lost(exc)

    @property
    def waiting(self) -> bool:
        """Whether the next step is the client's, and no answer is under way."""
        return self.conn.their_state in WAITING

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.limits.release(self)
        self.transport.abort()

    def _watch(self) -> None:
        """Starts the clock of a request that is not complete; stops it once it is."""
        if not self.waiting:
            self._cancel_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.request_seconds, self.drop)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class ConnectionLimits:
    """The open connections, oldest first. Used in the thread of the event loop only.

    Args:
        per_client: connections of one address (IPv6: of one /64 network).
        total: connections of all clients; half of the files this process may open, if that is less.
    """

    def __init__(self, per_client: int = MAX_PER_CLIENT, total: int = MAX_CONNECTIONS) -> None:
        self.per_client, self.total = per_client, total
        self._open: dict[GuardedProtocol, str] = {}

    def admit(self, new: GuardedProtocol) -> None:
        """Count a new connection, and drop the oldest waiting one where there are too many."""
        client = self._open[new] = client_network(new.peer)
        own = [each for each, other in self._open.items() if other == client]
        if len(own) > self.per_client:
            _drop_oldest_waiting(own)
        elif len(self._open) > min(self.total, open_file_limit() // 2):
            _drop_oldest_waiting(self._open)

    def release(self, connection: GuardedProtocol) -> None:
        """Forget a connection that is closed."""
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)


GuardedProtocol.limits = ConnectionLimits()


def _drop_oldest_waiting(connections: Iterable[GuardedProtocol]) -> None:
    """The newest one always waits, so there is one to drop."""
    next(each for each in connections if each.waiting).drop()


def server_options() -> dict[str, Any]:
    """Options of `uvicorn.Config`. A short backlog bounds the files that one burst of connections
    takes before `ConnectionLimits` sees them."""
    return {"http": GuardedProtocol, "ws": "none", "backlog": 128}


def open_file_limit() -> int:
    """Files and connections this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def raise_file_limit() -> None:
    """Raise the limit on open files as far as this user may, which often is far above 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS has a second limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
