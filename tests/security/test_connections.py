"""Incomplete requests and unread responses, sent to a small server with the protocol of the
dashboard."""

import asyncio
import contextlib
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from backend import logs
from backend.logs import RepeatFilter
from backend.queue.gate import client_network
from tests.waiting import until
from ui.security import connections
from ui.security.connections import ConnectionLimits, GuardedProtocol, server_options

HALF_SENT = (
    b"",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Half",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12",
)
LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
ANSWER = b"x" * 50_000_000  # more than the system keeps for a connection
Start = Callable[..., str]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body, then says from where the connection came; at /slow after a while.
    At /large it is a large answer."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.4)
    said = ANSWER if scope["path"] == "/large" else scope["state"]["peer"]
    await PlainTextResponse(said)(scope, receive, send)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server whose protocol has these attributes, and return its address."""
    with contextlib.ExitStack() as stack:
        yield lambda **attributes: stack.enter_context(serving(attributes))


@contextlib.contextmanager
def serving(attributes: dict[str, Any]) -> Iterator[str]:
    protocol = type("TestedProtocol", (GuardedProtocol,), attributes)
    options = server_options() | {"http": protocol}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(answer, log_level="error", lifespan="off", **options)
        )
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = server.force_exit = True
        thread.join()


def connect(url: str, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=20)
    connection.sendall(data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Read from the server until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1000):
            received += data
    return received


@pytest.mark.parametrize("half", HALF_SENT)
def test_half_a_request_has_an_end(start: Start, half: bytes) -> None:
    with connect(start(request_seconds=0.2), half) as connection:
        assert b"HTTP/1.1 4" not in rest(
            connection
        )  # it ended, which fails by the socket's timeout


def test_slow_and_large_answers_arrive_and_ended_connections_are_not_counted(start: Start) -> None:
    url = start(request_seconds=0.2)
    assert httpx.post(f"{url}/slow", content=b"body").text == "127.0.0.1"
    assert httpx.get(f"{start()}/large").content == ANSWER
    assert httpx.get(start(), headers={"x-forwarded-for": "10.9.8.7"}).text == "127.0.0.1"
    limits = ConnectionLimits()
    url = start(limits=limits)
    for _ in range(3):
        httpx.get(url, headers={"connection": "close"})
    until(lambda: not len(limits))


def test_an_answer_that_nobody_reads_has_an_end(start: Start) -> None:
    limits = ConnectionLimits()
    with connect(start(request_seconds=0.3, limits=limits), LARGE) as connection:
        connection.recv(10)
        assert len(limits) == 1
        until(lambda: not len(limits))


def test_who_does_not_read_takes_little_memory(start: Start) -> None:
    limits = ConnectionLimits()
    with contextlib.ExitStack() as stack:
        url = start(limits=limits)
        for _ in range(4):
            stack.enter_context(connect(url, LARGE)).recv(10)
        until(lambda: all(c.flow.write_paused for c in [*limits._open]))
        assert (
            max(c.transport.get_write_buffer_size() for c in [*limits._open])
            <= connections.CHUNK_BYTES
        )


@pytest.mark.parametrize(
    ("sent", "per_client", "files", "most"),
    [
        (HALF_SENT * 20, 20, 10_000, 20),
        ((b"",) * 60, 10_000, 40, 20),  # all clients together leave files for the rest
        ((LARGE,) * 6, 4, 10_000, 6),  # who reads slowly makes room
    ],
    ids=["half requests", "no requests", "unread answers"],
)
def test_whole_requests_are_answered_while_one_client_holds_all_it_may(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    sent: Sequence[bytes],
    per_client: int,
    files: int,
    most: int,
) -> None:
    monkeypatch.setattr(connections, "open_file_limit", lambda: files)
    limits = ConnectionLimits(per_client=per_client)
    url = start(limits=limits)
    with contextlib.ExitStack() as stack:
        for data in sent:
            connection = stack.enter_context(connect(url, data))
            if data == LARGE:
                connection.recv(10)
        until(lambda: LARGE not in sent or all(c.flow.write_paused for c in [*limits._open]))
        assert httpx.get(url).text == httpx.post(url, content=b"body").text == "127.0.0.1"
        assert len(limits) <= most


def test_the_limit_on_files_is_raised_as_far_as_it_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        connections.raise_file_limit()
        hard = before[1] if before[1] != resource.RLIM_INFINITY else connections.MAX_FILES
        assert connections.open_file_limit() == min(hard, connections.MAX_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_one_client_is_one_address_or_one_network_of_ipv6() -> None:
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff:1")
    assert client_network("2001:db8::1") != client_network("2001:db8:0:1::1")
    assert client_network("::ffff:10.0.0.7") == client_network("10.0.0.7") == "10.0.0.7"


def test_a_message_that_repeats_is_left_out_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, logger = [0.0], logging.getLogger("tests.repeats")
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    logger.addFilter(RepeatFilter(3))
    for clock[0] in (*range(50), 61.0):
        logger.error("accept failed: %d", clock[0])
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "0",
        "1",
        "2",
        "61 (47 more were not logged)",
    ]
