"""Web server of the serving process: the OpenAI API for the dashboard, which authenticates the
caller (`ui.openai_api`). Also the lifetime of the process and its share of CPU and memory."""

import asyncio
import hmac
import os
import resource
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from dataclasses import asdict
from urllib.parse import unquote

import psutil
import uvicorn
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.errors import SlimscopeError
from backend.models.memory import memory_available, memory_total
from backend.settings import available_threads, settings
from backend.store.migrate import other_version
from backend.store.session import fetched_value
from backend.store.states import LIVE
from backend.store.tables import Job
from jobs.serving.answering import AnswerEvent, AnswerStarted, AnswerWorker
from jobs.serving.client import (
    PERSON_HEADER,
    EventStream,
    listen,
    run_until_disconnect,
    stop_listening,
)
from jobs.serving.live.models import LivePool
from jobs.serving.live.routes import LiveRoutes
from jobs.serving.one_answer import Events, ResponseBuilder
from jobs.serving.openai_format import ENDPOINTS, error_body, error_headers, read_body
from jobs.serving.pool import ModelPool

CLIENT_CLOSED_REQUEST = Response(status_code=499)  # never read: the client has gone
NICE = 5  # niceness; runs have 0, so they take precedence on a busy core
IDLE_FACTOR = 10  # multiple of `idle_exit`, after which an idle supervisor ends
ORPHAN_S = 2.0  # idle time until the process ends once its parent has ended
MAX_PASS_S = 300.0  # a longer forward pass counts as hung
FREE_MEMORY_SHARE = 0.1  # share of the machine's memory that stays free
MIN_HEADROOM = 2**28  # bytes it may always allocate, enough to report an error
CHECK_S = 0.5  # interval of checks for active runs, versions and idleness


class ServingApp:
    """Web application that answers requests with the models of two pools. `active`: number of
    requests in progress."""

    def __init__(self, pool: ModelPool, live: LivePool) -> None:
        self.pool, self.active, self._used_at = pool, 0, time.monotonic()
        routes = [Route(path, self.generate, methods=["POST"]) for path in ENDPOINTS]
        routes += LiveRoutes(live, self._counting_request).routes
        self.asgi = Starlette(routes=[*routes, Route("/status", self.status)])

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is in progress."""
        return 0.0 if self.active else time.monotonic() - self._used_at

    def status(self, _: Request) -> Response:
        """Respond with the number of requests and the status of each engine."""
        engines = {name: asdict(status) for name, status in self.pool.status().items()}
        return JSONResponse({"requests": self.active, "models": engines})

    async def generate(self, request: Request) -> Response:
        """Answer a request. The response starts with the first event, so that a refusal (a full
        queue, a prompt that is too long) has its own HTTP status."""
        try:
            body = read_body(request.url.path, await request.body())
            person = unquote(request.headers.get(PERSON_HEADER, ""))
            async with AsyncExitStack() as resources:
                events = self._counted(AnswerWorker(body, person, self.pool))
                resources.push_async_callback(events.aclose)  # closed for refused requests, too
                first = await run_until_disconnect(request, _first_events(events))
                if first is None:
                    return CLIENT_CLOSED_REQUEST
                builder = ResponseBuilder(body, _chained(first, events))
                if body.stream:
                    return EventStream(builder.stream(), resources.pop_all())
                response = await run_until_disconnect(request, builder.response())
                return CLIENT_CLOSED_REQUEST if response is None else JSONResponse(response)
        except SlimscopeError as error:
            status, content = error_body(error)
            return JSONResponse(content, status, error_headers(error))

    async def _counted(self, worker: AnswerWorker) -> AsyncGenerator[tuple[int, AnswerEvent]]:
        with self._counting_request():
            async with aclosing(worker.events()) as events:
                async for event in events:
                    yield event

    @contextmanager
    def _counting_request(self) -> Iterator[None]:
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            self._used_at = time.monotonic()


async def _first_events(events: Events) -> list[tuple[int, AnswerEvent]]:
    """Return the events up to the first wait notice or text. Raises the error of a refused
    request."""
    first: list[tuple[int, AnswerEvent]] = []
    async for event in events:
        first.append(event)
        if isinstance(event[1], SlimscopeError):
            raise event[1]
        if not isinstance(event[1], AnswerStarted):
            break
    return first


async def _chained(
    first: Sequence[tuple[int, AnswerEvent]], remaining: Events
) -> AsyncIterator[tuple[int, AnswerEvent]]:
    for event in first:
        yield event
    async for event in remaining:
        yield event


class CpuShare:
    """Number of threads of each model: half of all while runs are active."""

    def __init__(self) -> None:
        self.jobs = False

    def threads(self) -> int:
        """Threads that a model may use now."""
        threads = settings().threads or available_threads()
        return max(1, threads // 2 if self.jobs else threads)


def serve(parent: int) -> None:
    """Answer requests until the process is idle for too long, receives a signal, loses its data
    folder, or has another version than the database or the code on disk. It also ends if `parent`,
    the process that started it, has ended and no request is left."""
    with suppress(OSError):  # holds for this thread and the threads that it starts
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    share = CpuShare()
    app = ServingApp(ModelPool(share.threads), LivePool(share.threads))
    bound, token = listen()
    options = uvicorn.Config(
        require_token(app.asgi, token),
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(options)

    async def watch() -> None:
        is_outdated = False
        while settings().root.is_dir() and app.idle_s <= IDLE_FACTOR * settings().idle_exit:
            with suppress(SQLAlchemyError):
                share.jobs, is_outdated = await asyncio.to_thread(_runs_and_version)
            limit_memory()
            if app.pool.pass_s > MAX_PASS_S:  # a thread cannot be killed alone
                print(f"A forward pass takes over {MAX_PASS_S:g} s. The process ends.", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            is_orphan = os.getppid() != parent and app.idle_s > ORPHAN_S
            if is_outdated or is_orphan:
                stop_listening()
                while app.active:
                    await asyncio.sleep(CHECK_S)
                break
            await asyncio.sleep(CHECK_S)
        server.should_exit = True

    async def work() -> None:
        watching = asyncio.create_task(watch())
        await server.serve(sockets=[bound])
        watching.cancel()

    asyncio.run(work())


def limit_memory() -> None:
    """Limit this process's memory, so that an allocation that would exhaust the machine fails, and
    with it only its own request. Called repeatedly, because free memory changes with the runs.

    RLIMIT_DATA counts the private memory of the process. RLIMIT_AS would also count mapped weights
    and the addresses that CUDA reserves and never uses. A parent that watches and kills would end
    all answers instead of one."""
    used_bytes = getattr(psutil.Process().memory_info(), "data", None)
    if used_bytes is None:  # not available on this platform
        return
    headroom = memory_available() - int(FREE_MEMORY_SHARE * memory_total())
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ValueError, OSError):  # a lower hard limit is already set
        resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + max(headroom, MIN_HEADROOM), hard))


def _runs_and_version() -> tuple[bool, bool]:
    """Return two flags: a run is active; a process of another version must replace this one."""
    live = fetched_value(select(Job.id).where(Job.state.in_([*LIVE])).limit(1))
    return live is not None, bool(other_version())


def require_token(app: ASGIApp, token: str) -> ASGIApp:
    """Wrap an application so that it answers only requests that present the token; without a token,
    all."""
    expected = f"Bearer {token}".encode()

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        presented = dict(scope.get("headers", ())).get(b"authorization", b"")
        if not token or hmac.compare_digest(presented, expected):
            await app(scope, receive, send)
        else:
            await Response(status_code=401)(scope, receive, send)

    return checked
