"""The web server of the serving process: the OpenAI API over HTTP, for the dashboard, which knows
who asks (`ui.openai_api`); how long it lives, and the part of the processor that its answers may
use."""

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
from backend.store.session import reading
from backend.store.states import LIVE
from backend.store.tables import Job
from jobs.serving.answering import Answering, Began, Happened
from jobs.serving.client import PERSON, EventStream, leave, listen, unless_gone
from jobs.serving.live.models import LivePool
from jobs.serving.live.routes import LiveRoutes
from jobs.serving.one_answer import Events, OneAnswer
from jobs.serving.openai_format import ENDPOINTS, error_body, error_headers, read_body
from jobs.serving.pool import ModelPool

GONE = Response(status_code=499)  # nobody reads it
NICE = 5  # of 19; a job has 0, so that it gets most of a core both want
IDLE_FACTOR = 10  # times as long as an idle supervisor
ORPHAN_S = 2.0  # without a request, until it ends after who started it
LONGEST_PASS_S = 300.0  # of an engine, until it is taken to hang
MEMORY_LEFT = 0.1  # share of the machine's memory that the process leaves free
LEAST_ROOM = 2**28  # bytes it may always take, so that it can tell that there is no memory
LOOK_S = 0.5  # between two looks at whether jobs run, and whether anybody still asks


class ServingApp:
    """Answers requests with the models of two pools; `active`: how many now."""

    def __init__(self, pool: ModelPool, live: LivePool) -> None:
        self.pool, self.active, self._used_at = pool, 0, time.monotonic()
        routes = [Route(path, self.generate, methods=["POST"]) for path in ENDPOINTS]
        routes += LiveRoutes(live, self._at_work).routes
        self.asgi = Starlette(routes=[*routes, Route("/status", self.status)])

    @property
    def idle_s(self) -> float:
        """Seconds since it was last used; 0 while it answers."""
        return 0.0 if self.active else time.monotonic() - self._used_at

    def status(self, _: Request) -> Response:
        engines = {name: asdict(status) for name, status in self.pool.status().items()}
        return JSONResponse({"requests": self.active, "models": engines})

    async def generate(self, request: Request) -> Response:
        """The headers of the answer are those of its first event: one that is refused, as the queue
        is full or the prompt too long, has the status that says so."""
        try:
            body = read_body(request.url.path, await request.body())
            person = unquote(request.headers.get(PERSON, ""))
            async with AsyncExitStack() as opened:
                events = self._counted(Answering(body, person, self.pool))
                opened.push_async_callback(events.aclose)  # also of what is refused
                first = await unless_gone(request, _beginning(events))
                if first is None:
                    return GONE
                answer = OneAnswer(body, _chained(first, events))
                if body.stream:
                    return EventStream(answer.stream(), opened.pop_all())
                whole = await unless_gone(request, answer.whole())
                return GONE if whole is None else JSONResponse(whole)
        except SlimscopeError as error:
            status, content = error_body(error)
            return JSONResponse(content, status, error_headers(error))

    async def _counted(self, answering: Answering) -> AsyncGenerator[tuple[int, Happened]]:
        with self._at_work():
            async with aclosing(answering.events()) as events:
                async for happened in events:
                    yield happened

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            self._used_at = time.monotonic()


async def _beginning(events: Events) -> list[tuple[int, Happened]]:
    """The events up to the first that tells that it is answered or waits; raises a refusal."""
    first: list[tuple[int, Happened]] = []
    async for happened in events:
        first.append(happened)
        if isinstance(happened[1], SlimscopeError):
            raise happened[1]
        if not isinstance(happened[1], Began):
            break
    return first


async def _chained(
    first: Sequence[tuple[int, Happened]], rest: Events
) -> AsyncIterator[tuple[int, Happened]]:
    for happened in first:
        yield happened
    async for happened in rest:
        yield happened


class CpuShare:
    """The threads of each model; `jobs` beside them take half."""

    def __init__(self) -> None:
        self.jobs = False

    def threads(self) -> int:
        every = settings().threads or available_threads()
        return max(1, every // 2 if self.jobs else every)


def serve(parent: int) -> None:
    """Answer until nobody asks, the process is asked to end, has no data folder, is of another
    version than the database or the code on the disk, or `parent`, whose child it was, has ended
    and nobody else asks."""
    with suppress(OSError):  # of this thread and of those it starts
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    share = CpuShare()
    app = ServingApp(ModelPool(share.threads), LivePool(share.threads))
    bound, token = listen()
    options = uvicorn.Config(
        with_token(app.asgi, token),
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
                share.jobs, is_outdated = await asyncio.to_thread(_look)
            limit_memory()
            if app.pool.pass_s > LONGEST_PASS_S:  # its thread cannot be ended
                print(f"A pass takes more than {LONGEST_PASS_S:g} s; the process ends.", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            is_orphan = os.getppid() != parent and app.idle_s > ORPHAN_S
            if is_outdated or is_orphan:
                leave()
                while app.active:
                    await asyncio.sleep(LOOK_S)
                break
            await asyncio.sleep(LOOK_S)
        server.should_exit = True

    async def work() -> None:
        watching = asyncio.create_task(watch())
        await server.serve(sockets=[bound])
        watching.cancel()

    asyncio.run(work())


def limit_memory() -> None:
    """Let allocations fail, each with its request, that would leave the machine without memory. To
    be called again and again: what is free changes with the runs beside it.

    RLIMIT_DATA counts what is private to the process. RLIMIT_AS would count mapped weights, too,
    and the addresses that CUDA reserves and never uses; a parent that watches and kills would end
    all answers instead of one."""
    held = getattr(psutil.Process().memory_info(), "data", None)
    if held is None:  # the platform does not tell
        return
    room = memory_available() - int(MEMORY_LEFT * memory_total())
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ValueError, OSError):  # a lower limit was set by whoever started it
        resource.setrlimit(resource.RLIMIT_DATA, (held + max(room, LEAST_ROOM), hard))


def _look() -> tuple[bool, bool]:
    """Whether a job runs; whether it is for the process of another version to answer."""
    with reading() as session:
        live = session.scalar(select(Job.id).where(Job.state.in_([*LIVE])).limit(1))
    return live is not None, bool(other_version())


def with_token(app: ASGIApp, token: str) -> ASGIApp:
    """The application, which answers only requests that show the token, where there is one."""
    expected = f"Bearer {token}".encode()

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        shown = dict(scope.get("headers", ())).get(b"authorization", b"")
        if not token or hmac.compare_digest(shown, expected):
            await app(scope, receive, send)
        else:
            await Response(status_code=401)(scope, receive, send)

    return checked
