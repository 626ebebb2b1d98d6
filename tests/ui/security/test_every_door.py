"""Every route of the web server and every function of the pages, called by who may change nothing:
each call is answered without a server error, and no row of the database changes."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import gradio as gr
import pytest
from gradio.routes import App
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from backend.settings import settings
from backend.store.session import engine_for
from backend.store.tables import Supervisor, Table
from tests.conftest import representatives
from tests.ui.visits import OTHER, TOKEN, Visit
from ui.security.middleware import GRADIO

HOST = {"authorization": f"Bearer {TOKEN}"}
STRANGERS: dict[str, dict[str, str]] = {  # what each sends
    "a stranger": {},
    "a forged session": {"cookie": "slimscope-host-7860=host.forged; slimscope-guest-7860=x.y"},
    "another site, by a host's browser": HOST | {"origin": "http://evil.example"},
    "another port": HOST | {"origin": "http://127.0.0.1:9999"},
    "a script of another site": HOST | {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"},
    "a host name that cannot be": {"host": "[evil"},
}
SITES = [who for who, headers in STRANGERS.items() if headers.items() & HOST.items()]
# What tells the others apart is in `test_middleware` and `test_sessions`.
AT_EVERY_DOOR = representatives(STRANGERS, "a forged session", "another site, by a host's browser")
RUNS = ("sds-0003", "x" * 300, "%00", "..%2f..%2fetc%2fpasswd", "%ff")
ENDLESS = ("/gradio_api/queue/data", "/gradio_api/heartbeat")  # streams
DEEDS = ("cancel", "delete", "edit", "archive", "vote1", "save")


def routes_of(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(method, path) of all routes, with those of mounted applications and included routers."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        within = getattr(route, "original_router", route)  # of FastAPI
        yield from routes_of(getattr(within, "routes", None) or (), path)
        for method in getattr(route, "methods", None) or ():
            yield method, path


def stored() -> dict[str, list[Any]]:
    """All rows, but for the beat of the supervisor."""
    with engine_for(settings().url).connect() as connection:
        return {
            each.__tablename__: [tuple(row) for row in connection.execute(each.__table__.select())]
            for each in Table.__subclasses__()
            if each is not Supervisor
        }


@pytest.fixture
def unchanged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is stored meanwhile, and nothing traced."""
    caplog.set_level(logging.WARNING)
    yield
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


@pytest.mark.parametrize("who", AT_EVERY_DOOR)
def test_every_route_answers_and_changes_nothing(
    who: str, unchanged: None, shared: Visit, web: App
) -> None:
    client, before = shared(OTHER, **STRANGERS[who]), stored()
    doors = sorted(set(routes_of(web.routes)))
    assert ("POST", "/slimscope/api/runs/{run}/cancel") in doors
    assert any(path.startswith(f"{GRADIO}queue/join") for _, path in doors)
    for number, (method, door) in enumerate(doors):
        path = re.sub(r"{[^}]+}", RUNS[number % len(RUNS)], door)
        if path.startswith(ENDLESS) and who not in SITES:
            continue
        for asked in (method, "DELETE"):
            options = {"json": {"config": {}, "data": []}} if asked in ("POST", "PUT") else {}
            answer = client.request(asked, f"{path}?address={'a' * 4000}", **options)
            assert answer.status_code < 500, (asked, path)
            if who in SITES:
                assert answer.status_code in (400, 403), (asked, path)
    assert stored() == before


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
DATA: dict[str, Any] = {  # what a page keeps -> what is sent in place of it
    "as it begins": lambda block: getattr(block, "value", None),
    "nothing": lambda block: None,
    "a state of no page": lambda block: {"x": 1} if isinstance(block, gr.JSON) else "x",
    "half a state": lambda block: {"mark": [], "offers": {}} if isinstance(block, gr.JSON) else "",
}


def answers_of(client: TestClient, web: App, sent: str) -> Iterator[int]:
    """Statuses of the answers of all functions."""
    for number, function in web.get_blocks().fns.items():
        done = {"do": DEEDS[number % len(DEEDS)], "run": "sds-0003", "text": "x", "file": "../x"}
        body = {
            "fn_index": number,
            "data": [DATA[sent](block) for block in function.inputs],
            "session_hash": "x",
            "event_data": FILE if sent in ("nothing", "half a state") else done,
        }
        headers, content = {"content-type": "application/json"}, json.dumps(body, default=str)
        path = f"{GRADIO}run/predict?run=sds-0001&chat=1"
        yield client.post(path, content=content, headers=headers).status_code


@pytest.mark.parametrize("sent", representatives(DATA, "as it begins", "half a state"))
def test_every_function_answers_a_guest_and_changes_nothing(
    sent: str, unchanged: None, shared: Visit, web: App
) -> None:
    before, answers = stored(), [*answers_of(shared(OTHER), web, sent)]
    assert len(answers) > 80 and {*answers} <= {200, 422, 429}
    assert stored() == before


@pytest.mark.parametrize("who", representatives(SITES, SITES[0]))
def test_no_function_answers_another_site(who: str, shared: Visit, web: App) -> None:
    assert {*answers_of(shared(OTHER, **STRANGERS[who]), web, "as it begins")} == {403}
