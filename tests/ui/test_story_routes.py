"""Adding views from any page, presenting and following: who may, and what is refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from backend.queue import stories
from backend.queue.actor import Actor
from backend.settings import Settings, settings
from tests.ui.conftest import HOSTILE
from ui.pages.story import routes

LOCAL = {"host": "localhost:7860"}
GUEST = LOCAL | {"forwarded": "for=x"}
PRESENTED = {"code": "", "story": 0, "at": 0, "address": "weights?run=sds-0001"}


@pytest.fixture
def client(tables: Settings) -> Iterator[TestClient]:
    with TestClient(Starlette(routes=routes.routes()), client=("127.0.0.1", 1)) as made:
        yield made


def present(client: TestClient, headers: dict[str, str] = LOCAL, **fields: Any) -> Any:
    return client.post("/slimscope/presented", json=PRESENTED | fields, headers=headers)


def test_many_phones_follow_what_the_host_and_no_guest_presents(client: TestClient) -> None:
    number = stories.create_story(HOSTILE, Actor("mira", "host"))
    code = present(client).json()["code"]
    assert len(code) == routes.CODE
    assert present(client, code=code, story=number, at=3, address="").json()["code"] == code
    for _ in range(100):  # a phone holds no connection
        shown = client.get(f"/slimscope/presented?code={code.lower()}", headers=GUEST).json()
        assert shown == {"story": number, "at": 3, "address": ""}
    assert "<img src=x" not in client.get(f"/slimscope/follow?code={code}", headers=GUEST).text
    assert client.get("/slimscope/presented?code=NOBODY", headers=GUEST).status_code == 404
    form = client.get("/slimscope/follow?code=%3Cb%3E", headers=GUEST)
    assert '<input name="code"' in form.text and "<b>" not in form.text
    assert present(client, GUEST).status_code == 403


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/", "//evil.example", "javascript:alert(1)", "../../etc", "a b", "x/y"],
)
def test_only_pages_of_this_dashboard_are_presented(client: TestClient, address: str) -> None:
    assert present(client, address=address).status_code == 422
    query = {"address": address, "view": address}
    assert client.get("/slimscope/qr", params=query, headers=LOCAL).status_code == 422
    assert client.get("/slimscope/story", params=query, headers=LOCAL).status_code == 422
    body = {"story": 0, "address": address}
    assert client.post("/slimscope/share", json=body, headers=LOCAL).status_code == 422
    assert stories.stories() == []


@pytest.mark.parametrize("fields", [{"at": 40}, {"at": -1}, {"story": "1"}, {"code": "x" * 7}])
def test_a_presentation_of_no_view_is_refused(client: TestClient, fields: dict[str, Any]) -> None:
    assert present(client, **fields).status_code == 422
    assert client.post("/slimscope/presented", content=b"{", headers=LOCAL).status_code == 422


def test_a_view_begins_a_story_or_joins_one(client: TestClient) -> None:
    body: dict[str, Any] = {"story": 0, "address": "weights?run=a", "text": HOSTILE}
    body["title"] = HOSTILE
    assert client.post("/slimscope/share", json=body, headers=GUEST).status_code == 403
    for title in ("", " ", "x" * 121):
        untitled = client.post("/slimscope/share", json=body | {"title": title}, headers=LOCAL)
        assert untitled.status_code == 422
    assert stories.stories() == []
    assert client.post("/slimscope/share", json=body, headers=LOCAL).status_code == 200
    (made,) = stories.stories()
    body |= {"story": made.id, "chart": "weights-heatmap"}
    assert client.post("/slimscope/share", json=body, headers=LOCAL).status_code == 200
    for unknown in ({"chart": "weights-nothing"}, {"address": "nowhere"}, {"story": 999}):
        refused = client.post("/slimscope/share", json=body | unknown, headers=LOCAL)
        assert refused.status_code in (404, 422)
    views = stories.stored_views(stories.story(made.id).views)
    assert [view.chart for view in views] == ["", "weights-heatmap"]
    assert made.title == HOSTILE
    view = {"address": "weights?run=a", "chart": "weights-heatmap"}
    shared = client.get("/slimscope/share", params=view, headers=GUEST).text
    assert "<img src=x" not in shared and "disabled" in shared
    assert 'value="weights-heatmap"' not in shared, "the run has no chart to draw"
    page = client.get(f"/slimscope/story?n={made.id}&at=1&live", headers=GUEST)
    assert "<img src=x" not in page.text and '"presents": true' in page.text
    assert page.text.count("<iframe") == 2
    for gone in ("n=999", "tour"):
        answer = client.get(f"/slimscope/story?{gone}", headers=GUEST, follow_redirects=False)
        assert answer.headers["location"].startswith("../story?n=")


def test_presentations_are_few() -> None:
    held, view = routes.Presentations(), routes.PresentedView(story=1, at=0)
    codes = [held.show(view) for _ in range(routes.MOST + 1)]
    assert list(held) == codes[1:]


def test_others_reach_the_link(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert present(client).json()["base"] == ""
    monkeypatch.setenv("SLIMSCOPE_HOST", "0.0.0.0")
    settings.cache_clear()
    monkeypatch.setattr(routes, "_own_address", lambda: "10.0.0.7")
    shared = client.get("/slimscope/share?address=weights", headers=LOCAL)
    assert 'value="http://10.0.0.7:7860/weights"' in shared.text
    code = client.get("/slimscope/qr?address=weights", headers=LOCAL)
    assert code.headers["content-type"].startswith("image/svg") and "<path" in code.text
    assert client.get(f"/slimscope/qr?address={'a' * 4000}", headers=LOCAL).status_code == 422
