"""Work that ends when its client goes away."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}  # by a proxy before us

T = TypeVar("T")


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
