"""Limits on open connections, and deadlines for slow clients.

Uvicorn limits the size of headers (16 kB) and closes connections that are idle between two
requests, but waits forever for the rest of a request and for a client that does not read. Here a
request, headers and body, has to be complete within 30 s, and the client has to read each chunk of
the response within 30 s. The server may take any time to respond.

If one client, or all clients together, hold too many connections, the oldest connection that waits
for its client is closed: for the rest of a request, for the next request, or for the client to
read. Complete requests are therefore served even while other clients hold connections open.
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
CHUNK_BYTES = 65_536  # chunk of a response that a connection buffers
WAITING_STATES = (h11.IDLE, h11.SEND_BODY)  # the client has not sent a complete request


class GuardedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with read and write deadlines and connection limits.

    The state of a request has the address of the connection as `peer`, because `client` may come
    from the header of a proxy. WebSockets are not offered: no page uses them.
    """

    request_seconds: ClassVar[float] = 30.0
    limits: "ClassVar[ConnectionLimits]"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.ws_protocol_class = None
        self.peer = self.client[0] if self.client else ""
        self.app_state = {**self.app_state, "peer": self.peer}
        self.app = in_chunks(self.app)
        self._read_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self.transport.set_write_buffer_limits(high=0)  # `pause_writing` at the first unread byte
        self._update_read_deadline()
        self.limits.admit(self)
        if (connection := transport.get_extra_info("socket")) is not None:
            # detect a client that has disappeared during a long stream: by default the kernel
            # retransmits for a quarter of an hour before it closes the connection
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in {
                "TCP_KEEPIDLE": self.request_seconds,
                "TCP_USER_TIMEOUT": 1000 * self.request_seconds,
            }.items():
                if hasattr(socket, name):  # not on macOS
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), int(value))

    def handle_events(self) -> None:
        super().handle_events()
        self._update_read_deadline()

    def pause_writing(self) -> None:
        """Start the write deadline: the client has not read everything sent to it."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self.request_seconds, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_write_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.release(self)
        self._cancel_read_deadline()
        self._cancel_write_deadline()
        super().connection_lost(exc)

    @property
    def waiting(self) -> bool:
        """True if the connection waits for a request and no response is in progress."""
        return self.conn.their_state in WAITING_STATES

    @property
    def stalled(self) -> bool:
        """True if the client has not read everything sent to it."""
        return self._write_deadline is not None

    def drop(self) -> None:
        """Close the connection without a response."""
        self.limits.release(self)
        self.transport.abort()

    def _update_read_deadline(self) -> None:
        """Start the read deadline while a request is incomplete; cancel it when it is complete."""
        if not self.waiting:
            self._cancel_read_deadline()
        elif self._read_deadline is None:
            self._read_deadline = self.loop.call_later(self.request_seconds, self.drop)

    def _cancel_read_deadline(self) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None


def in_chunks(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that responses are sent in chunks of `CHUNK_BYTES`. A chunk is copied
    into the connection's buffer after the client has read the previous one."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_chunks(message: Message) -> None:
            body = memoryview(message.get("body", b""))
            while len(body) > CHUNK_BYTES:
                await send({**message, "body": body[:CHUNK_BYTES], "more_body": True})
                body = body[CHUNK_BYTES:]
            await send({**message, "body": body} if "body" in message else message)

        await app(scope, receive, send_chunks)

    return respond


class ConnectionLimits:
    """Limits on the number of open connections. Used only in the thread of the event loop.

    Args:
        per_client: maximum number of connections of one address (IPv6: of one /64 network).
        total: maximum for all clients. Half of the process's limit on open files, if that is less.
    """

    def __init__(self, per_client: int = MAX_PER_CLIENT, total: int = MAX_CONNECTIONS) -> None:
        self.per_client, self.total = per_client, total
        self._open: dict[GuardedProtocol, str] = {}  # connection -> client, oldest first

    def admit(self, new: GuardedProtocol) -> None:
        """Add a new connection; drop the oldest waiting one if a limit is exceeded."""
        client = self._open[new] = client_network(new.peer)
        of_client = [connection for connection, name in self._open.items() if name == client]
        if len(of_client) > self.per_client:
            _drop_oldest_waiting(of_client)
        elif len(self._open) > min(self.total, open_file_limit() // 2):
            _drop_oldest_waiting(self._open)

    def release(self, connection: GuardedProtocol) -> None:
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)


GuardedProtocol.limits = ConnectionLimits()


def _drop_oldest_waiting(connections: Iterable[GuardedProtocol]) -> None:
    # the newest connection always waits for its first request, so there is one to drop
    next(
        connection for connection in connections if connection.waiting or connection.stalled
    ).drop()


def server_options() -> dict[str, Any]:
    """Options for `uvicorn.Config`. The short backlog limits how many files a burst of connections
    opens before `ConnectionLimits` counts them."""
    return {"http": GuardedProtocol, "ws": "none", "backlog": 128}


def open_file_limit() -> int:
    """Maximum number of open files and connections of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def raise_file_limit() -> None:
    """Raise the limit on open files to the user's hard limit, often far above 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        with suppress(ValueError, OSError):  # macOS has a second limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
