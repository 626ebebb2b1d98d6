"""Sessions of hosts: how they begin and end, and who cannot use the cookie of another."""

from collections.abc import Callable

import gradio as gr
import httpx
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from backend.store import queries
from tests.ui.visits import OTHER, TOKEN, Visit, event_of
from ui.security import auth
from ui.security.auth import DAY_S, MAX_AGE_S, MAX_IDLE_S, SessionStore

Login = Callable[..., TestClient]


@pytest.fixture
def login(shared: Visit) -> Login:
    """A browser at some address that has logged in."""

    def arrive(client: str = OTHER) -> TestClient:
        browser = shared(client)
        assert browser.post("/slimscope/host", data={"token": TOKEN}).status_code == 303
        return browser

    return arrive


def is_host(client: TestClient) -> bool:
    return "Logged in as host" in client.get("/slimscope/pulse").json()["html"]


def cookie_of(client: TestClient) -> str:
    return client.cookies[auth.cookie_name("host")]


def test_leaving_ends_the_session_and_not_only_the_cookie(login: Login, shared: Visit) -> None:
    client = login()
    kept = {"cookie": f"{auth.cookie_name('host')}={cookie_of(client)}"}
    assert is_host(client) and is_host(shared(OTHER, **kept))
    answer = client.post("/slimscope/leave")
    assert answer.status_code == 303 and "Max-Age=0" in answer.headers["set-cookie"]
    assert not is_host(client) and not client.cookies
    assert not is_host(shared(OTHER, **kept))


def test_no_other_site_can_log_a_host_out(login: Login) -> None:
    client = login()
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.post("/slimscope/leave", headers=headers).status_code == 403
    assert client.get("/slimscope/leave").status_code != 303 and is_host(client)


def test_every_login_has_a_cookie_of_its_own_and_ends_the_one_before(
    login: Login, shared: Visit
) -> None:
    first, second = login(), login()
    assert cookie_of(first) != cookie_of(second)
    old = {"cookie": f"{auth.cookie_name('host')}={cookie_of(first)}"}
    first.post("/slimscope/host", data={"token": TOKEN})
    assert is_host(first) and is_host(second) and not is_host(shared(OTHER, **old))


def test_a_cookie_that_another_port_received_is_worth_nothing_elsewhere(
    login: Login, shared: Visit
) -> None:
    """Who listens on another port of the same machine is sent the cookie, too."""
    stolen = {"cookie": f"{auth.cookie_name('host')}={cookie_of(login())}"}
    assert is_host(shared(OTHER, **stolen))
    for thief in ("127.0.0.1", "10.0.0.8"):
        assert not is_host(shared(thief, **stolen))


def test_who_listens_on_another_port_cannot_invent_the_address_either(
    blocks: gr.Blocks, login: Login
) -> None:
    """Over a socket, where the header `X-Forwarded-For` from this machine is believed."""
    stolen = f"{auth.cookie_name('host')}={cookie_of(login())}"
    headers = {"cookie": stolen, "x-forwarded-for": OTHER}
    with httpx.Client(base_url=blocks.local_url, headers=headers) as client:
        assert "Logged in as host" not in client.get("slimscope/pulse").text


def test_a_session_acts_through_the_event_queue_until_it_ends(
    blocks: gr.Blocks, shared: Visit, web: App
) -> None:
    """Over a socket, where Gradio hands the request of another route to the handlers."""
    body = {
        "fn_index": event_of(web, "runs-queue", "act"),
        "data": [],
        "session_hash": "host",
        "event_data": {"do": "cancel", "run": "sds-0003"},
    }
    with httpx.Client(base_url=blocks.local_url, timeout=30) as client:
        for leave, state in ((True, "queued"), (False, "cancelled")):
            client.post("slimscope/host", data={"token": TOKEN})
            if leave:
                client.post("slimscope/leave")
            assert client.post("gradio_api/queue/join", json=body).status_code == 200
            with client.stream("GET", "gradio_api/queue/data?session_hash=host") as lines:
                next(line for line in lines.iter_lines() if "process_completed" in line)
            assert queries.job("sds-0003").state == state


def test_two_dashboards_on_a_machine_have_cookies_of_two_names(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(login().cookies) == {"slimscope-host-7860"}


def test_sessions_expire_when_idle_and_after_a_month(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = [0.0], SessionStore()
    monkeypatch.setattr(auth.time, "monotonic", lambda: clock[0])
    idle, used = store.start("a"), store.start("a")
    for clock[0] in (DAY_S, MAX_IDLE_S + 1, *(day * DAY_S for day in range(8, 30))):
        assert store.use(used, "a")
    assert not store.use(idle, "a") and not store.use(used, "b")
    clock[0] = MAX_AGE_S + 1
    assert not store.use(used, "a")
    store.start("b")
    assert len(store._sessions) == 1  # expired ones are forgotten


def test_a_forged_id_is_no_session(login: Login, shared: Visit) -> None:
    client = login()
    session_id = cookie_of(client).rpartition(".")[0]
    for value in (session_id, f"{session_id}.", "host", auth.signed("host", "host"), "."):
        assert not is_host(shared(OTHER, cookie=f"{auth.cookie_name('host')}={value}"))
