"""How many connections clients may hold open, and for how long a request may be half-sent.

Uvicorn limits the size of headers (16 kB), and closes connections that are idle between two
requests, but waits forever for the rest of a request, and for a client that does not read. Here a
request has to be complete, headers and body, within 30 s, and each piece of an answer has to be
read within that time. Where a client, or all clients together, hold too many connections, the
oldest one that waits for the rest of its request, for the next, or for its client to read, is
closed; so those who send whole requests are served while others hold connections open. The work on
an answer may take as long as it needs.
"""

import asyncio
import resource
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from backend.queue.gate import client_network

MAX_PER_CLIENT = 256  # a browser opens six; all visitors behind a proxy are one client
MAX_CONNECTIONS = 4096
MAX_FILES = 65_536
PIECE = 65_536  # bytes of an answer in the memory of a connection
WAITING = (h11.IDLE, h11.SEND_BODY)  # states of a client that owes us part of a request


class GuardedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with deadlines for who sends and who reads, and with `limits`.

    Requests find the address of the connection as `peer` in their state: `client` may come from the
    header of a proxy. WebSockets, which no page uses, are not offered.
    """

    request_seconds: ClassVar[float] = 30.0
    limits: "ClassVar[ConnectionLimits]"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.ws_protocol_class = None
        self.peer = self.client[0] if self.client else ""
        self.app_state = {**self.app_state, "peer": self.peer}
        self.app = in_pieces(self.app)
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.transport.set_write_buffer_limits(high=0)  # `pause_writing` at the first unread byte
        self._watch()
        self.limits.admit(self)
        if (connection := transport.get_extra_info("socket")) is not None:
            # close a connection, such as an endless stream, whose other end is gone without a word:
            # the kernel would send again for a quarter of an hour
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in {
                "TCP_KEEPIDLE": self.request_seconds,
                "TCP_USER_TIMEOUT": 1000 * self.request_seconds,
            }.items():
                if hasattr(socket, name):  # not on macOS
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), int(value))

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def pause_writing(self) -> None:
        """The client has not read all that was sent; starts its clock."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.request_seconds, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.release(self)
        self._cancel_deadline()
        self._stop_reading_clock()
        super().connection_lost(exc)

    @property
    def waiting(self) -> bool:
        """Whether the next step is the client's, and no answer is under way."""
        return self.conn.their_state in WAITING

    @property
    def stalled(self) -> bool:
        """Whether the client has not read what was sent."""
        return self._unread is not None

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

    def _stop_reading_clock(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def in_pieces(app: ASGIApp) -> ASGIApp:
    """The application, whose answers are sent in pieces. The next one is copied into the memory of
    the connection when the client has read the one before."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_pieces(message: Message) -> None:
            body = memoryview(message.get("body", b""))
            while len(body) > PIECE:
                await send({**message, "body": body[:PIECE], "more_body": True})
                body = body[PIECE:]
            await send({**message, "body": body} if "body" in message else message)

        await app(scope, receive, send_pieces)

    return answer


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
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)


GuardedProtocol.limits = ConnectionLimits()


def _drop_oldest_waiting(connections: Iterable[GuardedProtocol]) -> None:
    """The newest one always waits, so there is one to drop."""
    next(each for each in connections if each.waiting or each.stalled).drop()


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
