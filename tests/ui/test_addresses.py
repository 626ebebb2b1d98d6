"""An address that leads nowhere: a page for people, JSON for programs."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.testclient import TestClient

from ui.addresses import not_found


def test_an_unknown_address_gets_a_page_whose_text_is_text() -> None:
    with TestClient(Starlette(exception_handlers={404: not_found})) as client:
        page = client.get("/<b>nothing", headers={"accept": "text/html"})
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/html")
        assert "There is no page at /&lt;b&gt;nothing" in page.text and 'href="runs"' in page.text
        answer = client.get("/nothing", headers={"accept": "application/json"})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
