"""An address that leads nowhere: a page for people, JSON for programs."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.testclient import TestClient

from ui.app import not_found
from ui.theme import DARK, LIGHT


def test_an_unknown_address_gets_a_page_whose_text_is_text() -> None:
    with TestClient(Starlette(exception_handlers={404: not_found})) as client:
        page = client.get("/<b>nothing", headers={"accept": "text/html"})
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/html")
        assert "There is no page at /&lt;b&gt;nothing" in page.text and 'href="runs"' in page.text
        assert f"--text:{LIGHT.text};" in page.text and f"--text:{DARK.text};" in page.text
        deeper = client.get("/weights/map/x", headers={"accept": "text/html"}).text
        assert 'href="../../"' in deeper and 'href="../../runs"' in deeper
        answer = client.get("/nothing", headers={"accept": "application/json"})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
