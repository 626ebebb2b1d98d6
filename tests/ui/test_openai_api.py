"""`/v1` of the dashboard: who may ask, how much, and what passes through."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from gradio.routes import App
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.queue import gate, permissions
from jobs.serving import client, keys
from jobs.serving.client import answer_interrupted
from jobs.serving.openai_format import ENDPOINTS, error_body
from tests.gates import nothing_asked
from tests.queue.conftest import HOST
from tests.ui.visits import OTHER, SITE, TOKEN, Visit, set_up
from ui.openai_api import relay
from ui.security import auth

CHAT, TEXT = ENDPOINTS
SAID = {"model": "toy", "messages": [{"role": "user", "content": "Why?"}]}


class Double:
    """In place of the process: answers with what it was asked; `status`: of its answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.app = Starlette(
            routes=[Route(path, self.answer, methods=["POST"]) for path in ENDPOINTS]
        )

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((request.headers[client.PERSON_HEADER], body))
        if body.get("stream"):
            return Response(b": {}\n\ndata: [DONE]\n\n", media_type="text/event-stream")
        return JSONResponse({"id": 1}, self.status, {"retry-after": "7"})

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://double")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Double:
    nothing_asked(monkeypatch)
    double = Double()
    monkeypatch.setattr(client, "_client", double.client)
    return double


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_models_are_listed_and_found(visit: Visit) -> None:
    here = visit()
    names = [each["id"] for each in here.get("/v1/models").json()["data"]]
    assert {"toy", "smollm2-135m"} <= {*names}
    assert here.get("/v1/models/toy").json()["object"] == "model"
    assert error_of(here.get("/v1/models/nobody/none")) == (404, "model_not_found")
    assert error_of(here.get("/v1/embeddings")) == (404, "model_not_found")


def test_the_host_of_this_machine_asks_and_streams(visit: Visit, double: Double) -> None:
    here = visit()
    assert here.post(CHAT, json=SAID).json() == {"id": 1}
    streamed = here.post(TEXT, json={"model": "toy", "prompt": [1, 2], "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert [person for person, _ in double.asked] == ["local", "local"]
    assert double.asked[1][1] == {"model": "toy", "prompt": [1, 2], "stream": True}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"x" * 10_000_000, (413, "invalid_request")),
        (b'{"model": ' + b"[" * 100_000, (422, "invalid_request")),
        (b'{"metadata": ' + b"[" * 70 + b"]" * 70 + b"}", (422, "invalid_request")),
        (b'{"model": "\\u0000"}', (422, "invalid_request")),
        (json.dumps({**SAID, "stop": ["x"] * 1000}).encode(), (400, "invalid_value")),
        (b"[]", (400, "invalid_value")),
        (b"", (400, "invalid_value")),
    ],
)
def test_bad_bodies_reach_nobody(
    visit: Visit, double: Double, content: bytes, found: tuple[int, str]
) -> None:
    kind = {"content-type": "application/json"}
    assert error_of(visit().post(CHAT, content=content, headers=kind)) == found
    assert double.asked == []


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_other_sites_get_nothing(visit: Visit, double: Double, headers: dict[str, str]) -> None:
    refused = visit().post(CHAT, json=SAID, headers=headers)
    assert error_of(refused) == (403, "forbidden") and double.asked == []


def test_any_key_will_do_where_none_is_needed(visit: Visit, double: Double) -> None:
    program = visit(authorization="Bearer x")
    assert program.post(CHAT, json=SAID).status_code == 200
    assert program.get("/v1/models").status_code == 200
    assert program.get("/slimscope/api/kinds").status_code == 401  # there it is a wrong token
    behind_a_proxy = visit(authorization="Bearer x", x_forwarded_for="10.0.0.9")
    assert error_of(behind_a_proxy.post(CHAT, json=SAID | {"max_tokens": 999}))[0] == 403


def test_a_key_makes_a_host_of_v1_alone_until_it_is_revoked(shared: Visit, double: Double) -> None:
    key = keys.create_key("lab", HOST)
    (stored,) = keys.all_keys()
    assert key not in vars(stored).values() and len(stored.sha256) == 64
    there = shared(OTHER, authorization=f"Bearer {key}")
    assert there.post(CHAT, json=SAID).status_code == 200 and double.asked[0][0] == "key%20lab"
    assert there.get("/slimscope/api/kinds").status_code == 401
    assert shared(OTHER, authorization=f"Bearer {TOKEN}").post(CHAT, json=SAID).status_code == 200
    keys.revoke_key("lab", HOST)
    for wrong in (key, "slim-", "sk-x", key + "x"):
        answer = shared(OTHER, authorization=f"Bearer {wrong}").post(CHAT, json=SAID)
        assert error_of(answer) == (401, "invalid_api_key")
    assert len(double.asked) == 2


def test_a_stream_whose_process_ends_ends_with_an_error() -> None:
    async def killed() -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        raise httpx.ReadError("gone")

    async def came() -> list[bytes]:
        response = httpx.Response(200, content=killed())
        return [piece async for piece in relay(response, error_body(answer_interrupted())[1])]

    first, last = asyncio.run(came())
    assert first == b"data: {}\n\n"
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_guests_ask_within_their_limits(
    shared: Visit, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert error_of(shared(OTHER).post(CHAT, json=SAID)) == (403, "forbidden")
    set_up(monkeypatch, GUEST_ANSWERS="8")
    monkeypatch.setattr(permissions, "GUEST_LETTERS", 50)
    monkeypatch.setattr(gate.answers, "limit", 2)
    guest = shared(OTHER)
    for path, more in (
        (CHAT, {**SAID, "max_tokens": 257}),
        (CHAT, {**SAID, "max_tokens": 129, "n": 2}),
        (TEXT, {"model": "toy", "prompt": "x" * 51}),
    ):
        assert error_of(guest.post(path, json=more)) == (403, "forbidden")
    double.status = 429  # what the process refuses does not count either
    refused = guest.post(CHAT, json=SAID)
    assert refused.status_code == 429 and refused.headers["retry-after"] == "7"
    double.status = 200
    for _ in range(2):
        assert guest.post(CHAT, json=SAID).status_code == 200
    assert double.asked[-1][1]["usual_tokens"] == 256 and double.asked[-1][0].startswith("guest-")
    late = guest.post(CHAT, json=SAID)
    assert error_of(late) == (429, "rate_limit_exceeded") and late.headers["retry-after"]
    set_up(monkeypatch, GUEST_ANSWERS="0")
    assert error_of(guest.post(CHAT, json=SAID)) == (403, "forbidden")


class HeldDouble(Double):
    """Answers `first` at once, and nobody else before `release` is set."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first, self.release = first, asyncio.Event()
        self.held, self.answered = asyncio.Semaphore(0), list[str]()

    async def answer(self, request: Request) -> Response:
        person = request.headers[client.PERSON_HEADER]
        if person != self.first:
            self.held.release()
            await self.release.wait()
        self.answered.append(person)
        return await super().answer(request)


@pytest.mark.parametrize(("visitors", "each"), [(30, 1), (1, 80)])
def test_who_comes_from_another_address_waits_for_no_crowd(
    visitors: int, each: int, shared: Visit, web: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty visitors at one address ask, or one with eighty connections."""
    set_up(monkeypatch, GUEST_ANSWERS="8")
    for name, places in (("guest_answers", 8), ("requests", gate.MAX_REQUESTS)):
        monkeypatch.setattr(gate, name, gate.Gate(lambda places=places: places))
    crowd = [auth.new_guest(OTHER) for _ in range(visitors)]
    neighbor = auth.new_guest("10.0.0.8")
    double = HeldDouble(neighbor.rpartition(".")[0])
    monkeypatch.setattr(client, "_client", double.client)

    async def ask(address: str, cookie: str) -> int:
        way = httpx.ASGITransport(web, client=(address, 1))
        headers = {"cookie": f"{auth.cookie_name('guest')}={cookie}"}
        async with httpx.AsyncClient(transport=way, base_url=SITE, timeout=None) as browser:
            return (await browser.post(CHAT, json=SAID, headers=headers)).status_code

    async def both() -> list[int]:
        asked = [asyncio.create_task(ask(OTHER, one)) for one in crowd for _ in range(each)]
        for _ in range(min(8, visitors * gate.MAX_ANSWERS_PER_GUEST)):
            await asyncio.wait_for(double.held.acquire(), 20)
        assert await asyncio.wait_for(ask("10.0.0.8", neighbor), 20) == 200
        assert double.answered == [double.first]
        double.release.set()
        return await asyncio.gather(*asked)

    assert {*asyncio.run(both())} == {200, 429}
