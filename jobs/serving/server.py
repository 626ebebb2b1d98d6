"""The web server of the serving process, how long it lives, and the part of the processor that its
answers may use."""

import asyncio
import hmac
import os
from contextlib import suppress

import uvicorn
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.settings import available_threads, settings
from backend.store.migrate import other_version
from backend.store.session import reading
from backend.store.states import LIVE
from backend.store.tables import Job
from jobs.serving.app import ServingApp
from jobs.serving.client import leave, listen
from jobs.serving.live.models import LivePool
from jobs.serving.pool import ModelPool

NICE = 5  # of 19; a job has 0, so that it gets most of a core both want
IDLE_FACTOR = 10  # times as long as an idle supervisor
LOOK_S = 0.5  # between two looks at whether jobs run, and whether anybody still asks


class CpuShare:
    """The threads of each model; `jobs` beside them take half."""

    def __init__(self) -> None:
        self.jobs = False

    def threads(self) -> int:
        every = settings().threads or available_threads()
        return max(1, every // 2 if self.jobs else every)


def lower_priority() -> None:
    """Lower the priority of this thread and of those it starts."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def serve() -> None:
    """Answer until nobody asks, the process is asked to end, has no data folder, or is of another
    version than the database or the code on the disk."""
    lower_priority()
    share = CpuShare()
    app = ServingApp(ModelPool(share.threads), LivePool(share.threads))
    bound, token = listen()
    options = uvicorn.Config(
        with_token(app.asgi, token), log_level="warning", access_log=False, ws="none",
        lifespan="off", timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(options)

    async def watch() -> None:
        while settings().root.is_dir():
            if app.idle_s > IDLE_FACTOR * settings().idle_exit:
                break
            with suppress(SQLAlchemyError):
                share.jobs, is_outdated = await asyncio.to_thread(_look)
                if is_outdated:
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
