"""Client of the serving process of a data folder. Requests go over a Unix socket in that folder,
which only this user may open. Without Unix sockets, or if the path is too long for one, they go
over a port of the loopback address, with a token stored in the data folder. Work for a client ends
when the client disconnects."""

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

# headers with the name and role of the caller
PERSON_HEADER, ROLE_HEADER = "x-slimscope-person", "x-slimscope-role"
MAX_PATH = 100  # bytes of a socket path; Linux allows 107, macOS 103
START_S = 40.0  # limit for the start of a process, which imports torch
RETRY_S = 0.2  # pause between two attempts to connect
STATUS_S = 2.0  # limit for a status request
PING_S = 5.0  # interval of checks for a hung process while a request waits
HUNG_S = 30.0  # a process that sends no status for so long is restarted
UNREACHABLE = "The models cannot be reached."
UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}  # for proxies

T = TypeVar("T")


def socket_path() -> Path:
    """Path of the Unix socket."""
    return SERVING.path(".sock")


def address_path() -> Path:
    """Path of the file with port and token, for platforms without a Unix socket."""
    return SERVING.path(".json")


def listen() -> tuple[socket.socket, str]:
    """Open the socket of the serving process. Return it with the token that requests must present;
    "" on a Unix socket."""
    path = socket_path()
    path.parent.mkdir(parents=True, exist_ok=True)  # missing if the database is elsewhere
    if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= MAX_PATH:
        path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX)
        previous_umask = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(previous_umask)
        return bound, ""
    bound, token = socket.socket(), secrets.token_urlsafe(32)
    bound.bind(("127.0.0.1", 0))
    descriptor = os.open(address_path(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        json.dump({"port": bound.getsockname()[1], "token": token}, file)
    return bound, token


@contextmanager
def translated_errors(error_type: type[httpcore.NetworkError]) -> Iterator[None]:
    """Raise errors of the operating system as `error_type`."""
    try:
        yield
    except OSError as error:
        raise error_type from error


class UnixStream(httpcore.AsyncNetworkStream):
    """Connection over a Unix socket by asyncio's streams. With anyio's streams, which httpx uses by
    default, asyncio logs an error when a client disconnects while data arrives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with translated_errors(httpcore.ReadError):
                return await asyncio.wait_for(self._reader.read(max_bytes), timeout)
        except httpcore.ReadError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise httpcore.ReadTimeout from error
            raise

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with translated_errors(httpcore.WriteError):
            self._writer.write(buffer)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()


class UnixSockets(httpcore.AsyncNetworkBackend):
    """Network backend of httpcore that opens Unix sockets with asyncio."""

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> UnixStream:
        with translated_errors(httpcore.ConnectError):
            return UnixStream(*await asyncio.open_unix_connection(path))


class UnixTransport(httpx.AsyncHTTPTransport):
    """Transport of httpx over a Unix socket."""

    def __init__(self, path: str) -> None:
        self._pool = httpcore.AsyncConnectionPool(uds=path, network_backend=UnixSockets())


def stop_listening() -> None:
    """Stop accepting connections; open requests are answered to the end."""
    for path in (socket_path(), address_path()):
        path.unlink(missing_ok=True)


def _client() -> httpx.AsyncClient:
    """Return a client of the process. Raises OSError: the process does not listen yet."""
    options: dict[str, Any] = {"timeout": httpx.Timeout(None, connect=5.0), "trust_env": False}
    if socket_path().exists():
        transport = UnixTransport(str(socket_path()))
        return httpx.AsyncClient(transport=transport, base_url="http://serving", **options)
    address = json.loads(address_path().read_text("utf-8"))
    headers = {"authorization": f"Bearer {address['token']}"}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{int(address['port'])}",
        headers=headers,
        verify=False,
        **options,
    )


@asynccontextmanager
async def send_request(
    path: str, body: bytes, actor: Actor, silent_s: float | None = None
) -> AsyncIterator[httpx.Response]:
    """Send a request and yield its response, of which only the headers have been read.

    The process is started if it does not run, and restarted if it hangs. Leaving the block ends
    the request.

    Args:
        silent_s: seconds without a byte after which the request ends; None: no limit.

    Raises:
        SlimscopeError: the process cannot be started, or ended before it answered.
    """
    headers = {
        PERSON_HEADER: quote(actor.name),
        ROLE_HEADER: actor.role,
        "content-type": "application/json",
    }
    async with AsyncExitStack() as resources:
        watching = asyncio.ensure_future(_restart_if_hung())
        resources.callback(watching.cancel)
        yield await _open_response(path, body, headers, silent_s, resources)


async def _restart_if_hung() -> None:
    """Restart a process that does not respond, which ends all requests that wait for it."""
    while True:
        await asyncio.sleep(PING_S)
        with suppress(OSError, ValueError, KeyError, httpx.TransportError):  # it has ended
            async with _client() as client:
                try:
                    await client.get("/status", timeout=HUNG_S)
                except httpx.TimeoutException:
                    await asyncio.to_thread(SERVING.restart)


async def _open_response(
    path: str,
    body: bytes,
    headers: dict[str, str],
    silent_s: float | None,
    resources: AsyncExitStack,
) -> httpx.Response:
    """Send the request and return its response; start the process if it does not listen."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            client = await resources.enter_async_context(_client())
            timeout = httpx.Timeout(None, connect=5.0, read=silent_s)
            request = client.build_request(
                "POST", path, content=body, headers=headers, timeout=timeout
            )
            response = await client.send(request, stream=True)
            resources.push_async_callback(response.aclose)
            return response
        except (OSError, ValueError, KeyError, httpx.ConnectError):
            if why := await anyio.to_thread.run_sync(other_version):
                raise SlimscopeError(UNREACHABLE, why) from None
            await anyio.to_thread.run_sync(SERVING.wake)
            await anyio.sleep(RETRY_S)
        except httpx.TransportError as error:
            raise answer_interrupted() from error
    log = SERVING.path(".log")
    raise SlimscopeError(UNREACHABLE, "The serving process did not start.", f"See its log: {log}.")


async def serving_status() -> dict[str, Any]:
    """Return the status of the process; empty if none runs."""
    try:
        async with _client() as client:
            status: dict[str, Any] = (await client.get("/status", timeout=STATUS_S)).json()
            return status
    except (OSError, ValueError, KeyError, httpx.TransportError):
        return {}


def answer_interrupted() -> SlimscopeError:
    """Return the error for an answer whose process ended or hung."""
    return SlimscopeError(
        "The answer ended early.",
        f"The serving process ended, or hung for {HUNG_S:g} s. It is restarted.",
        "Ask again.",
    )


async def run_until_disconnect(request: Request, work: Awaitable[T]) -> T | None:
    """Return the result of `work`, or None if the client disconnects first, which cancels the work.
    The body of the request must have been read before."""
    result, failure = None, None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            result = await work
        except Exception as error:  # raised below: a task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure:
        raise failure
    return result


class EventStream(StreamingResponse):
    """Server-sent events together with their resources. The resources are closed before the stream
    ends, or as soon as the client disconnects, even if it never reads."""

    def __init__(self, events: AsyncIterator[bytes], resources: AsyncExitStack) -> None:
        async def all_events() -> AsyncIterator[bytes]:
            async for event in events:
                yield event
            await resources.aclose()

        super().__init__(all_events(), headers=UNBUFFERED, media_type="text/event-stream")
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._resources.aclose()
