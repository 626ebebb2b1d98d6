"""Work that ends when its client goes away."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio
from starlette.requests import Request

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
