"""One client with many requests leaves room for the others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from backend.errors import ForbiddenError
from backend.queue import gate
from backend.queue.gate import Gate
from backend.settings import Settings
from tests.ui.visits import OTHER, SITE, TOKEN, set_up
from ui import api
from ui.security import auth
from ui.security.middleware import SecurityMiddleware

NEIGHBOR = "10.0.0.8"
Said = dict[str, Any]


class SlowSite:
    """A site with work that ends when the test says so.

    Attributes:
        at_work: how many requests are worked on.
    """

    def __init__(self) -> None:
        self.end, self.at_work = threading.Event(), 0
        self._lock = threading.Lock()
        routes = [
            Route("/slow", self.slow, methods=["GET", "POST"]),
            Route("/stream", self.stream),
            Route("/", lambda _: PlainTextResponse("here")),
        ]
        self.app = SecurityMiddleware(Starlette(routes=routes))

    def slow(self, _: Request) -> Response:
        with self._lock:
            self.at_work += 1
        self.end.wait(60)
        return PlainTextResponse("done")

    async def stream(self, _: Request) -> Response:
        async def parts() -> Any:
            yield b"one"
            await asyncio.to_thread(self.end.wait, 60)

        return StreamingResponse(parts())

    async def ask(self, path: str, client: str, cookie: str = "") -> int:
        transport = httpx.ASGITransport(self.app, client=(client, 1))
        headers = {"cookie": cookie} if cookie else {}
        async with httpx.AsyncClient(transport=transport, base_url=SITE, timeout=None) as browser:
            return (await browser.get(path, headers=headers)).status_code


@pytest.fixture
def site(current: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSite]:
    set_up(monkeypatch, HOST="0.0.0.0", HOST_TOKEN=TOKEN)
    monkeypatch.setattr(gate, "requests", Gate(lambda: gate.MAX_REQUESTS))
    made = SlowSite()
    yield made
    made.end.set()
    auth.token.cache_clear()


def while_busy(
    site: SlowSite, busy: list[Awaitable[int]], then: Callable[[], Awaitable[int]]
) -> tuple[int, int, list[int]]:
    """What another is answered while those wait, how many were at work then, and their answers."""

    async def both() -> tuple[int, int, list[int]]:
        waiting = asyncio.gather(*busy)
        before, same = -1, 0
        while same < 4:  # until nobody else begins, however slow the machine is
            same = same + 1 if site.at_work == before else 0
            before = site.at_work
            await asyncio.sleep(0.4)
        other = await asyncio.wait_for(then(), 20)
        at_work = site.at_work
        site.end.set()
        return other, at_work, list(await waiting)

    return asyncio.run(both())


def test_who_asks_for_much_waits_and_others_are_answered(site: SlowSite) -> None:
    busy = [site.ask("/slow", OTHER) for _ in range(45)]
    other, at_work, answers = while_busy(site, busy, lambda: site.ask("/", NEIGHBOR))
    assert (other, at_work) == (200, gate.MAX_REQUESTS_PER_VISITOR)
    assert answers == [200] * 45


def test_who_shares_an_address_is_answered_too(site: SlowSite) -> None:
    cookie = f"{auth.cookie_name('guest')}={auth.new_guest(OTHER)}"
    busy = [site.ask("/slow", OTHER) for _ in range(45)]
    other, _, _ = while_busy(site, busy, lambda: site.ask("/", OTHER, cookie))
    assert other == 200


def test_many_sessions_of_one_address_leave_room_for_other_addresses(site: SlowSite) -> None:
    names = [f"{auth.cookie_name('guest')}={auth.new_guest(OTHER)}" for _ in range(20)]
    busy = [site.ask("/slow", OTHER, name) for name in names for _ in range(3)]
    other, at_work, answers = while_busy(site, busy, lambda: site.ask("/", NEIGHBOR))
    assert (other, at_work) == (200, gate.MAX_REQUESTS)  # all of them, as long as nobody else asks
    assert {*answers} == {200}


def test_a_line_has_an_end(site: SlowSite) -> None:
    most = gate.MAX_REQUESTS_PER_VISITOR + gate.MAX_WAITING_PER_VISITOR
    cookie = f"{auth.cookie_name('guest')}={auth.new_guest(OTHER)}"
    busy = [site.ask("/slow", OTHER, cookie) for _ in range(most + 5)]
    other, _, answers = while_busy(site, busy, lambda: site.ask("/", NEIGHBOR))
    assert other == 200 and sorted(answers) == [200] * most + [429] * 5


def test_a_class_whose_guests_get_no_session_is_answered(
    site: SlowSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, GUEST_ANSWERS="0")
    busy = [site.ask("/slow", OTHER) for _ in range(30 * 6)]
    other, at_work, answers = while_busy(site, busy, lambda: site.ask("/", NEIGHBOR))
    assert (other, at_work, {*answers}) == (200, gate.MAX_REQUESTS // 2, {200})


def test_nothing_is_kept_of_who_has_left(site: SlowSite) -> None:
    while_busy(
        site, [site.ask("/slow", f"10.0.1.{n}") for n in range(5)], lambda: site.ask("/", "")
    )
    assert not gate.requests._active and not gate.requests._waiting


def test_an_answer_that_goes_on_and_half_a_request_hold_no_turn(
    site: SlowSite,
) -> None:
    async def never() -> Said:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def nowhere(_: Any) -> None:
        pass

    def scope(method: str, path: str) -> Said:
        return {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "state": {},
            "client": (OTHER, 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"5")],
        }

    async def held() -> int:
        kinds = (scope("GET", "/stream"), scope("POST", "/slow"))
        calls = [(each, never) for each in kinds for _ in range(gate.MAX_REQUESTS_PER_VISITOR)]
        calls[:3] = [(each, given(b"")) for each, _ in calls[:3]]
        tasks = [asyncio.create_task(site.app(each, said, nowhere)) for each, said in calls]
        await asyncio.sleep(0.3)
        status = await asyncio.wait_for(site.ask("/", OTHER), 20)
        site.end.set()
        for task in tasks:
            task.cancel()
        return status

    def given(body: bytes) -> Callable[[], Awaitable[Said]]:
        first = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Said:
            return next(first, None) or await never()

        return receive

    assert asyncio.run(held()) == 200


def test_what_the_application_refuses_is_no_refusal_of_the_gate(
    site: SlowSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(*_: Any) -> None:
        raise ForbiddenError("Not here.", "", "")

    monkeypatch.setattr(site.app, "app", refuses)
    with pytest.raises(ForbiddenError, match="Not here"):
        asyncio.run(site.ask("/", OTHER))
    assert not gate.requests._active


def test_the_page_about_the_api_is_built_once(
    served: gr.Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    build = api.build

    def counted() -> Any:
        built.append(1)
        return build()

    monkeypatch.setattr(api, "build", counted)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(api.docs, Request({"type": "http"})) for _ in range(8)]
    assert len({bytes(each.result().body) for each in asked}) == 1 and len(built) <= 1
