"""An operation that lives in one plugin file: a command, a request, a tool and a button."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from backend.queue.actor import Actor
from backend.settings import Settings, settings
from backend.store import queries
from jobs.cli import server as mcp_server
from jobs.operations.registry import OPERATIONS
from tests.queue.conftest import HOST
from tests.shell import slimscope
from ui import api
from ui.runs import actions
from ui.static import once

mcp = pytest.importorskip("mcp")
GUEST = Actor("guest", "guest", "10.0.0.7")


@pytest.fixture
def plugged(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLIMSCOPE_PLUGINS", '["tests.plugins.operation"]')

    def forget() -> None:
        settings.cache_clear()
        actions._buttons.cache_clear()
        vars(OPERATIONS.declarations).pop("_entries", None)

    forget()
    yield
    monkeypatch.undo()
    forget()
    for name in ("star", "longest-name"):
        OPERATIONS._entries.pop(name, None)
    sys.modules.pop("tests.plugins.operation", None)


def ask(client: str) -> TestClient:
    return TestClient(api.build(), base_url="http://localhost", client=(client, 1))


def test_it_is_a_command(plugged: None) -> None:
    assert "star " in slimscope("--help").stdout
    assert "--stars" in slimscope("star", "--help").stdout
    assert slimscope("star", "sds-0001").stdout == "sds-0001 has a star.\n"
    done = slimscope("star", "1", "--stars", "3", "--json")
    assert json.loads(done.stdout) == {"id": "sds-0001", "stars": 3}
    assert queries.job(1).tags[-2:] == ["stars-1", "stars-3"]
    refused = slimscope("star", "sds-0001", "--stars", "9")
    assert refused.returncode == 2 and "--stars" in refused.stderr
    assert set(json.loads(slimscope("longest-name", "--json").stdout)) == {"name"}


def test_it_is_a_documented_request(plugged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ask("127.0.0.1")
    described = host.get("/openapi.json").json()["paths"]["/runs/{run}/star"]["post"]
    assert described["description"] == "Star a run. Hosts only."
    stars = next(each for each in described["parameters"] if each["name"] == "stars")
    assert (stars["schema"]["minimum"], stars["schema"]["maximum"]) == (1, 5)
    monkeypatch.setattr(api, "_docs", once(api.docs_html))
    page = bytes(api.docs(Request({"type": "http"})).body).decode()
    assert "POST /runs/{run}/star" in page and "GET /longest-name" in page
    assert host.post("/runs/sds-0001/star?stars=2").json() == {"id": "sds-0001", "stars": 2}
    for query, status in (("stars=9", 422), ("stars=x", 422), ("star=1", 422)):
        assert host.post(f"/runs/sds-0001/star?{query}").status_code == status
    assert host.post("/runs/sds-0999/star").status_code == 404


def test_it_is_a_tool(plugged: None) -> None:
    async def talk() -> list[Any]:
        async with mcp.Client(mcp_server.build(HOST)) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"star", "longest_name"} <= names
            calls = [{"run": "1"}, {"run": "1", "stars": 9}, {"run": "1", "more": 1}]
            return [await client.call_tool("star", each) for each in calls]

    done, large, unknown = asyncio.run(talk())
    assert done.structured_content == {"id": "sds-0001", "stars": 1}
    assert large.is_error and unknown.is_error and "more" in unknown.content[0].text


def test_it_is_a_button(plugged: None) -> None:
    jobs = [queries.job(1)]
    found = actions.available_actions(jobs, HOST, "order")
    (star,) = (each for each in found if each.name == "star")
    assert star.text == "Star" and not star.forbidden
    assert actions.carry_out("star", jobs, "", HOST) == "sds-0001 has a star."


def test_a_guest_is_refused_what_is_for_hosts(plugged: None, monkeypatch: Any) -> None:
    monkeypatch.setattr("backend.queue.labels.require_host", lambda *_: None)  # a service forgets
    before = queries.job(1).tags
    guest = ask("10.0.0.7")
    refused = guest.post("/runs/sds-0001/star")
    assert refused.status_code == 403 and "may not star a run" in refused.json()["what"]
    assert guest.get("/longest-name").status_code == 200
    (star,) = (
        each
        for each in actions.available_actions([queries.job(1)], GUEST, "order")
        if each.name == "star"
    )
    assert star.forbidden
    with pytest.raises(Exception, match="may not star a run"):
        actions.carry_out("star", [queries.job(1)], "", GUEST)
    assert queries.job(1).tags == before
