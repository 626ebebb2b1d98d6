"""Live models of the dashboard: who may ask, about which models, and what passes through."""

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from backend.models.sources.catalog import inspect
from backend.queue import gate, permissions
from backend.queue.actor import Actor
from jobs.serving import client
from tests.gates import nothing_asked
from tests.queue.conftest import HOST
from tests.ui.visits import OTHER, TOKEN, Visit, set_up
from ui import live_api
from ui.live_api import PATH, live_parts

ASKED = {"model": "toy", "state": "~wanda~rtn~dense~0x25", "browser": "b"}
GUEST = Actor("guest-1", "guest", OTHER)


class LiveDouble:
    """In place of the process."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, dict[str, Any]]] = []
        routes = [Route("/live/{name}", self.answer, methods=["POST"])]
        self.transport = httpx.ASGITransport(Starlette(routes=routes))

    async def answer(self, request: Request) -> Response:
        name, headers = request.path_params["name"], request.headers
        body = await request.json()
        self.asked.append((name, headers[client.PERSON_HEADER], headers[client.ROLE_HEADER], body))
        if name == "answer":
            return Response(b'data: {"event": "done"}\n\n', media_type="text/event-stream")
        status = 400 if body.get("name") == "bad" else 200
        return JSONResponse({"what": "No layer."}, status)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.transport, base_url="http://double")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> LiveDouble:
    nothing_asked(monkeypatch)
    monkeypatch.setattr(live_api, "_opened_by_hosts", set())
    double = LiveDouble()
    monkeypatch.setattr(client, "_client", double.client)
    return double


def test_a_host_asks_and_what_comes_passes_through(visit: Visit, double: LiveDouble) -> None:
    here = visit()
    streamed = here.post(f"{PATH}/live", json={**ASKED, "want": ["loss"]})
    assert streamed.text == 'data: {"event": "done"}\n\n'
    assert streamed.headers["content-type"].startswith("text/event-stream")
    query = {**ASKED, "name": "bad"}
    assert here.get(f"{PATH}/tensor", params=query).status_code == 400
    assert here.get(f"{PATH}/tensor", params={**query, "name": "q"}).json() == {"what": "No layer."}
    assert here.post(f"{PATH}/export", json={**ASKED, "name": "mine"}).status_code == 200
    assert [each[:3] for each in double.asked] == [
        ("answer", "local", "host"),
        *[("tensor", "local", "host")] * 2,
        ("export", "local", "host"),
    ]
    assert double.asked[0][3]["want"] == ["loss"]


@pytest.mark.parametrize(
    ("way", "content", "found"),
    [
        ("live", b"x", 422),
        ("live", b"[]", 422),
        ("live", b"", 422),
        ("live", b"x" * 2_000_000, 413),
        ("live", json.dumps({**ASKED, "browser": "a b"}).encode(), 422),
        ("live", json.dumps({**ASKED, "state": 5}).encode(), 422),
        ("live", json.dumps({**ASKED, "want": ["all"]}).encode(), 422),
        ("live", json.dumps({**ASKED, "against": "x" * 301}).encode(), 422),
        ("live", json.dumps({**ASKED, "state": "<b>"}).encode(), 422),
        ("export", json.dumps({**ASKED, "name": "../x"}).encode(), 422),
        ("export", json.dumps(ASKED).encode(), 422),
    ],
)
def test_bad_bodies_reach_nobody(
    visit: Visit, double: LiveDouble, way: str, content: bytes, found: int
) -> None:
    kind = {"content-type": "application/json"}
    answer = visit().post(f"{PATH}/{way}", content=content, headers=kind)
    assert answer.status_code == found and double.asked == []
    assert visit().get(f"{PATH}/tensor", params={"model": "toy"}).json()["field"] == "state"


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_other_sites_get_nothing(visit: Visit, double: LiveDouble, headers: dict[str, str]) -> None:
    here = visit()
    refused = [
        here.post(f"{PATH}/{way}", json=ASKED, headers=headers) for way in ("live", "export")
    ]
    refused.append(here.get(f"{PATH}/tensor", params={**ASKED, "name": "q"}, headers=headers))
    assert [each.status_code for each in refused] == [403] * 3 and double.asked == []


def test_guests_change_what_a_host_has_opened_within_their_limits(
    shared: Visit, double: LiveDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, host = shared(OTHER), shared(OTHER, authorization=f"Bearer {TOKEN}")
    assert guest.post(f"{PATH}/live", json=ASKED).status_code == 403  # guests only look
    set_up(monkeypatch, GUEST_ANSWERS="8")
    monkeypatch.setattr(permissions, "GUEST_LETTERS", 50)
    guest = shared(OTHER)
    for way in ("live", "tensor"):
        query = {**ASKED, "name": "q"}
        refused = (
            guest.post(f"{PATH}/live", json=ASKED)
            if way == "live"
            else guest.get(f"{PATH}/tensor", params=query)
        )
        assert refused.status_code == 403 and "a host has opened" in refused.json()["why"]
    assert "a host has opened" in live_parts(inspect("toy"), "toy", GUEST)["why"]
    assert host.post(f"{PATH}/live", json=ASKED).status_code == 200
    assert guest.post(f"{PATH}/live", json=ASKED).status_code == 200
    assert double.asked[-1][2] == "guest" and live_parts(inspect("toy"), "toy", GUEST)["why"] == ""
    for named in ("model", "against"):
        assert guest.post(f"{PATH}/live", json={**ASKED, named: "other"}).status_code == 403
    assert guest.post(f"{PATH}/live", json={**ASKED, "prompt": "x" * 51}).status_code == 403
    assert guest.post(f"{PATH}/export", json={**ASKED, "name": "mine"}).status_code == 403
    monkeypatch.setattr(gate.previews, "limit", 1)
    late = guest.post(f"{PATH}/live", json=ASKED)
    assert late.status_code == 429 and late.headers["retry-after"] == "10"
    assert len(double.asked) == 2


def test_models_that_do_not_fit_or_are_packed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_parts(inspect("toy"), "toy", HOST)["why"] == ""
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: 1000)
    parts = live_parts(inspect("toy"), "toy", HOST)
    assert "does not fit into memory" in parts["why"] and parts["do"] and parts["bytes"] > 1000
