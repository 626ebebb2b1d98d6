"""How other processes reach the serving process of a data folder: over a Unix socket in it, which
only this user may open; where there are none, or the path is too long for one, over a port of the
loopback address, with a token that a file in the data folder holds. Work for a client ends when
that goes away."""

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpcore
import httpx
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from backend.errors import SlimscopeError
from backend.queue.actor import Actor
from backend.queue.launcher import SERVING
from backend.store.migrate import other_version

PERSON, ROLE = "x-slimscope-person", "x-slimscope-role"  # headers: who asks
MAX_PATH = 100  # bytes; the kernel takes 107, on macOS 103
START_S, TRY_S = 40.0, 0.2  # a new process imports torch
STATUS_S = 2.0
PING_S = 5.0  # between two looks at whether the process hangs, while somebody waits for it
HUNG_S = 30.0  # without a word about its status, until it is restarted
UNREACHABLE = "The models cannot be reached."
UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}  # by a proxy before us

T = TypeVar("T")


def socket_path() -> Path:
    return SERVING.lock_path().with_suffix(".sock")


def address_path() -> Path:
    """The file with port and token, where no Unix socket is used."""
    return SERVING.lock_path().with_suffix(".json")


def listen() -> tuple[socket.socket, str]:
    """The socket the process listens on, and the token that requests have to show; "" for none."""
    path = socket_path()
    path.parent.mkdir(parents=True, exist_ok=True)  # the database may be elsewhere
    if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= MAX_PATH:
        path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(before)
        return bound, ""
    bound, token = socket.socket(), secrets.token_urlsafe(32)
    bound.bind(("127.0.0.1", 0))
    file = os.open(address_path(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(file, "w", encoding="utf-8") as written:  # noqa: PTH123 - a descriptor
        json.dump({"port": bound.getsockname()[1], "token": token}, written)
    return bound, token


@contextmanager
def raising(kind: type[httpcore.NetworkError]) -> Iterator[None]:
    """Errors of the system as this kind."""
    try:
        yield
    except OSError as error:
        raise kind from error


class UnixStream(httpcore.AsyncNetworkStream):
    """A connection over a Unix socket by asyncio's streams. With those of anyio, which httpx takes,
    asyncio logs an error where a client leaves just as something comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with raising(httpcore.ReadError):
                return await asyncio.wait_for(self._reader.read(max_bytes), timeout)
        except httpcore.ReadError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise httpcore.ReadTimeout from error
            raise

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with raising(httpcore.WriteError):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()


class UnixSockets(httpcore.AsyncNetworkBackend):
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> UnixStream:
        with raising(httpcore.ConnectError):
            return UnixStream(*await asyncio.open_unix_connection(path))


class UnixTransport(httpx.AsyncHTTPTransport):
    def __init__(self, path: str) -> None:
        self._pool = httpcore.AsyncConnectionPool(uds=path, network_backend=UnixSockets())


def leave() -> None:
    """Let nobody else reach the process; those who do are answered to the end."""
    for path in (socket_path(), address_path()):
        path.unlink(missing_ok=True)


def _client() -> httpx.AsyncClient:
    """A client of the process; OSError where it has not begun to listen."""
    options: dict[str, Any] = {"timeout": httpx.Timeout(None, connect=5.0), "trust_env": False}
    if socket_path().exists():
        transport = UnixTransport(str(socket_path()))
        return httpx.AsyncClient(transport=transport, base_url="http://serving", **options)
    about = json.loads(address_path().read_text("utf-8"))
    headers = {"authorization": f"Bearer {about['token']}"}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{int(about['port'])}", headers=headers, verify=False, **options
    )


@asynccontextmanager
async def sent(
    path: str, body: bytes, actor: Actor, silent_s: float | None = None
) -> AsyncIterator[httpx.Response]:
    """The response to a request, of which only the headers have been read. The process is started
    if it does not run, and restarted if it hangs; leaving the block ends the request. `silent_s`:
    without a byte it ends.
    Raises SlimscopeError: it cannot be started, or ended before it answered."""
    headers = {PERSON: quote(actor.name), ROLE: actor.role, "content-type": "application/json"}
    async with AsyncExitStack() as opened:
        watching = asyncio.ensure_future(_restart_if_hung())
        opened.callback(watching.cancel)
        yield await _begun(path, body, headers, silent_s, opened)


async def _restart_if_hung() -> None:
    """End a process that does not respond, and with it all requests that wait for it."""
    while True:
        await asyncio.sleep(PING_S)
        with suppress(OSError, ValueError, KeyError, httpx.TransportError):  # it has ended
            async with _client() as client:
                try:
                    await client.get("/status", timeout=HUNG_S)
                except httpx.TimeoutException:
                    await asyncio.to_thread(SERVING.restart)


async def _begun(
    path: str, body: bytes, headers: dict[str, str], silent_s: float | None, opened: AsyncExitStack
) -> httpx.Response:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            client = await opened.enter_async_context(_client())
            limits = httpx.Timeout(None, connect=5.0, read=silent_s)
            request = client.build_request(
                "POST", path, content=body, headers=headers, timeout=limits
            )
            response = await client.send(request, stream=True)
            opened.push_async_callback(response.aclose)
            return response
        except (OSError, ValueError, KeyError, httpx.ConnectError):
            if why := await anyio.to_thread.run_sync(other_version):
                raise SlimscopeError(UNREACHABLE, why) from None
            await anyio.to_thread.run_sync(SERVING.wake)
            await anyio.sleep(TRY_S)
        except httpx.TransportError as error:
            raise ended() from error
    log = SERVING.lock_path().with_suffix(".log")
    raise SlimscopeError(UNREACHABLE, "Their process did not start.", f"See its log: {log}.")


async def serving_status() -> dict[str, Any]:
    """What the process does; empty where there is none."""
    try:
        async with _client() as client:
            found: dict[str, Any] = (await client.get("/status", timeout=STATUS_S)).json()
            return found
    except (OSError, ValueError, KeyError, httpx.TransportError):
        return {}


def ended() -> SlimscopeError:
    return SlimscopeError(
        "The answer ended early.",
        f"The process of the models ended, or hung for {HUNG_S:g} s. It is restarted.",
        "Ask again.",
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """The result of the work, or None: the client has closed the connection, and the work was
    cancelled. The body of the request was read before."""
    result, failed = None, None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            result = await work
        except Exception as error:  # not as one of a group
            failed = error
        tasks.cancel_scope.cancel()
    if failed:
        raise failed
    return result


class EventStream(StreamingResponse):
    """Server-sent events, with what they come from, which is closed before the end is told; or at
    once when the client goes away, also one that does not read."""

    def __init__(self, events: AsyncIterator[bytes], opened: AsyncExitStack) -> None:
        async def all_events() -> AsyncIterator[bytes]:
            async for event in events:
                yield event
            await opened.aclose()

        super().__init__(all_events(), headers=UNBUFFERED, media_type="text/event-stream")
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._opened.aclose()
