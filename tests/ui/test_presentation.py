"""Presenting: who may, what can be presented, and what a phone that follows is told."""

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from backend.settings import Settings, settings
from ui import presentation

LOCAL = {"host": "localhost:7860"}
GUEST = LOCAL | {"forwarded": "for=x"}


@pytest.fixture
def client(current: Settings) -> Iterator[TestClient]:
    with TestClient(Starlette(routes=presentation.routes()), client=("127.0.0.1", 1)) as made:
        yield made


def test_whoever_has_the_code_sees_what_the_host_and_no_guest_presents(client: TestClient) -> None:
    shown = {"address": "weights?run=sds-0001&at=first"}
    code = client.post("/slimscope/presented", json=shown, headers=LOCAL).json()["code"]
    assert len(code) == presentation.CODE
    found = client.get(f"/slimscope/presented?code={code.lower()}", headers=GUEST)
    assert found.json() == shown
    again = {"code": code, "address": "./"}
    assert client.post("/slimscope/presented", json=again, headers=LOCAL).json()["code"] == code
    assert client.get(f"/slimscope/presented?code={code}", headers=GUEST).json()["address"] == "./"
    assert client.get("/slimscope/presented?code=NOBODY", headers=GUEST).status_code == 404
    page = client.get("/slimscope/follow?code=%20", headers=GUEST)
    assert '<input name="code"' in page.text and "<iframe" not in page.text
    shown = {"address": "runs"}
    assert client.post("/slimscope/presented", json=shown, headers=GUEST).status_code == 403


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/", "//evil.example", "javascript:alert(1)", "../../etc", "a b", "x/y"],
)
def test_only_pages_of_this_dashboard_are_presented(client: TestClient, address: str) -> None:
    answer = client.post("/slimscope/presented", json={"address": address}, headers=LOCAL)
    assert answer.status_code == 422
    query = {"address": address}
    assert client.get("/slimscope/qr", params=query, headers=LOCAL).status_code == 422
    page = client.get("/slimscope/present", params={"view": address}, headers=LOCAL)
    assert 'data-view=""' in page.text


def test_presentations_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    held = presentation.Presentations()
    first = held.show("", "runs")
    for _ in range(presentation.MOST):
        held.show("", "runs")
    assert held.address(first) is None
    last = held.show("", "weights")
    now = presentation.time.monotonic()
    monkeypatch.setattr(presentation.time, "monotonic", lambda: now + presentation.EXPIRY_S + 1)
    assert held.show(last, "runs") != last


def test_others_reach_the_link(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/slimscope/share", headers=LOCAL).json() == {"base": ""}
    monkeypatch.setenv("SLIMSCOPE_HOST", "0.0.0.0")
    settings.cache_clear()
    monkeypatch.setattr(presentation, "_own_address", lambda: "10.0.0.7")
    base = client.get("/slimscope/share", headers=LOCAL).json()["base"]
    assert base == "http://10.0.0.7:7860/"
    code = client.get("/slimscope/qr?address=weights", headers=LOCAL)
    assert code.headers["content-type"].startswith("image/svg") and "<path" in code.text
    assert client.get(f"/slimscope/qr?address={'a' * 4000}", headers=LOCAL).status_code == 422
