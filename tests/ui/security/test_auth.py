"""Who is host and who is guest, and what each may do: asked of the real dashboard the way an
attacker would, past every button."""

import contextlib
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

from backend.errors import ForbiddenError, RateLimitError
from backend.models.facts import ModelFacts
from backend.models.sources import catalog
from backend.queue import gate, permissions, scheduling, service
from backend.queue.actor import Actor
from backend.settings import Settings
from backend.store import queries
from jobs import submit
from tests.ui.visits import OTHER, TOKEN, Visit, event_of, set_up
from ui.pages.new_run.page import PATH as NEW_RUN
from ui.pages.new_run.page import VERSION
from ui.security import auth


def role(client: TestClient) -> str:
    return "guest" if "guest" in client.get("/slimscope/pulse").json()["html"] else "host"


def raw_act(client: TestClient, web: App, deed: str, run: str, panel: str = "runs-queue") -> str:
    """What the server says when the browser claims that this button was pressed."""
    body = {
        "fn_index": event_of(web, panel, "act"),
        "data": [],
        "session_hash": "x",
        "event_data": {"do": deed, "run": run},
    }
    answer = client.post("/gradio_api/run/predict", json=body)
    assert answer.status_code == 200
    return json.dumps(answer.json()["data"])


def compose(client: TestClient, action: str = "", **values: Any) -> dict[str, str]:
    """Return the parts that *New run* sends for an SDS run with these values."""
    steps = [{"kind": "sds", "values": values}]
    body = {"version": VERSION, "composition": {"steps": steps}, "action": action}
    answer = client.post(NEW_RUN, json=body)
    assert answer.status_code == 200, answer.text
    parts: dict[str, str] = answer.json()["parts"]
    return parts


# who is who ---------------------------------------------------------------------------------------


def test_on_loopback_whoever_sits_here_is_host_and_whoever_comes_through_a_proxy_is_not(
    visit: Visit,
) -> None:
    assert role(visit()) == "host"
    assert role(visit(OTHER)) == "guest"
    for header in (
        "x_forwarded_for",
        "x_forwarded_proto",
        "x_forwarded",
        "forwarded",
        "via",
        "x_real_ip",
        "cf_connecting_ip",
        "true_client_ip",
        "x_client_ip",
        "fly_client_ip",
        "x_original_for",
    ):
        assert role(visit(**{header: "127.0.0.1"})) == "guest", header


def test_where_others_can_reach_it_only_the_token_makes_a_host(shared: Visit) -> None:
    assert role(shared()) == "guest"  # others may have a shell on this machine
    assert role(shared(OTHER)) == "guest"
    assert role(shared(OTHER, authorization=f"Bearer {TOKEN}")) == "host"
    assert role(shared(OTHER, authorization="Basic abc")) == "guest"
    assert "set-cookie" not in shared(OTHER).get("/").headers


def test_a_wrong_token_is_refused_and_soon_not_even_looked_at(shared: Visit) -> None:
    client = shared(OTHER, authorization="Bearer " + "wrong" * 5)
    codes = [client.get("/slimscope/api/runs").status_code for _ in range(12)]
    assert codes == [401] * 10 + [429] * 2
    assert shared(OTHER, authorization=f"Bearer {TOKEN}").get("/").status_code == 200


def test_a_proxy_header_does_not_hide_who_tries_wrong_tokens(
    blocks: gr.Blocks, shared: Visit
) -> None:
    """Over a socket, where the header `X-Forwarded-For` from this machine is believed."""
    codes = []
    for number in range(12):
        headers = {"x-forwarded-for": f"10.0.1.{number}", "authorization": "Bearer wrong-token"}
        codes.append(
            httpx.get(f"{blocks.local_url}slimscope/api/runs", headers=headers).status_code
        )
    assert codes == [401] * 10 + [429] * 2


def test_no_more_of_a_login_is_read_than_a_token_needs(
    shared: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(auth, "parse_qs", lambda text: read.append(text) or {})
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = shared(OTHER).post("/slimscope/host", content=b"a=1&" * 200_000, headers=form)
    assert answer.status_code == 403 and [len(text) for text in read] == [auth.MAX_FORM_BYTES]


def test_the_token_is_exchanged_for_a_cookie_no_script_and_no_other_site_can_use(
    shared: Visit, capfd: pytest.CaptureFixture[str]
) -> None:
    client = shared(OTHER)
    assert 'type="password"' in client.get("/slimscope/host").text
    assert client.post("/slimscope/host", data={"token": TOKEN[:-1]}).status_code == 403
    assert role(client) == "guest"
    answer = client.post("/slimscope/host", data={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "../"
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert TOKEN not in cookie and "Secure" not in cookie
    assert role(client) == "host"
    assert TOKEN not in "".join(capfd.readouterr())
    behind_tls = shared(OTHER, x_forwarded_proto="https")
    assert (
        "; Secure"
        in behind_tls.post("/slimscope/host", data={"token": TOKEN}).headers["set-cookie"]
    )


def test_another_token_ends_the_old_cookie(shared: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    client = shared(OTHER)
    client.post("/slimscope/host", data={"token": TOKEN})
    assert role(client) == "host"
    set_up(monkeypatch, HOST_TOKEN=TOKEN + "2")
    assert role(client) == "guest"


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda *pair: compared.append(pair) or False)
    assert not auth._is_token(TOKEN)
    assert compared == [(TOKEN.encode(), auth.token().encode())]


def test_the_link_holds_the_token_where_no_log_sees_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, HOST="0.0.0.0")
    link = auth.host_link(7860)
    before, _, token = link.partition("#")
    assert before.endswith(":7860/slimscope/host") and token == auth.token()
    assert len(token) >= 32
    set_up(monkeypatch, HOST_TOKEN=TOKEN, HOST="::1")
    assert auth.host_link(80) == "http://[::1]:80/slimscope/host"  # he knows it himself


def test_a_token_that_is_easily_guessed_is_refused_and_never_printed() -> None:
    with pytest.raises(ValueError, match="16 characters") as refused:
        Settings(host_token="opensesame")
    assert "opensesame" not in str(refused.value)
    assert TOKEN not in repr(Settings(host_token=TOKEN))


# what a guest may do ------------------------------------------------------------------------------


def test_a_guest_changes_nothing_by_raw_requests(
    shared: Visit, web: App, caplog: pytest.LogCaptureFixture
) -> None:
    guest, before = shared(OTHER), [(j.state, j.desired) for j in queries.jobs()]
    for deed in ("cancel", "kill", "retry", "resume", "free"):
        for run in ("sds-0002", "sds-0003", "sds-0004"):
            assert "Guests have read-only access" in raw_act(guest, web, deed, run)
    assert "Guests have read-only access" in raw_act(guest, web, "free", "sds-0004", "run-disk")
    assert "Guests have read-only access" in compose(guest, "queue", model="toy")["new-said"]
    for path in (
        "runs/sds-0003/cancel",
        "runs/sds-0004/resume",
        "runs/sds-0004/free",
        "submit/sds",
    ):
        assert guest.post(f"/slimscope/api/{path}", json={}).status_code == 403
    assert [(j.state, j.desired) for j in queries.jobs()] == before
    assert len(caplog.messages) == 5 * 3 + 1 + 1 + 4  # the log keeps who asked for each of them
    assert all(OTHER in said and "may not" in said for said in caplog.messages)
    assert "to stop at the next safe point" in raw_act(
        shared(authorization=f"Bearer {TOKEN}"), web, "cancel", "sds-0002"
    )


def test_the_preview_looks_for_a_model_only_for_who_may_add_runs(
    shared: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def inspect(spec: str) -> ModelFacts:
        looked.append(spec)
        return catalog.inspect(spec)

    monkeypatch.setattr("jobs.fields.models.inspect", inspect)
    plan = compose(shared(OTHER), model="org/name")["new-plan"]
    assert "org/name" in plan and looked == []
    compose(shared(authorization=f"Bearer {TOKEN}"), model="toy")
    assert set(looked) == {"toy"}


def test_previews_are_limited_for_each_visitor(
    shared: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate.previews, "limit", 2)
    host = shared(authorization=f"Bearer {TOKEN}")
    answers = [json.dumps(compose(host, model="toy")) for _ in range(3)]
    assert ["Too many requests" in answer for answer in answers] == [False, False, True]
    other = shared(OTHER, authorization=f"Bearer {TOKEN}")
    assert "Too many requests" not in json.dumps(compose(other, model="toy"))


def test_a_guest_starts_no_supervisor_by_cancelling_nothing(
    shared: Visit, web: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "wake_supervisor", lambda: pytest.fail("It was started."))
    guest = shared(OTHER)
    for deed in ("cancel-sweep", "resume-sweep"):
        assert "Guests have read-only access" in raw_act(guest, web, deed, "sds-0005")


def test_a_guests_buttons_are_off_and_say_why(shared: Visit, web: App) -> None:
    def board(client: TestClient) -> str:
        config = web.get_blocks().config
        board = next(
            c["id"] for c in config["components"] if c["props"].get("elem_id") == "runs-queue"
        )
        number = next(
            d["id"] for d in config["dependencies"] if board in d["outputs"] and not d["inputs"]
        )
        body = {"fn_index": number, "data": [], "session_hash": "x"}
        return json.dumps(client.post("/gradio_api/run/predict", json=body).json()["data"])

    button = re.escape('data-testid=\\"cancel-sds-0003\\"') + "[^>]*"
    assert "disabled title=" in re.findall(button, board(shared(OTHER)))[0]
    host = board(shared(OTHER, authorization=f"Bearer {TOKEN}"))
    assert "disabled" not in re.findall(button, host)[0]


SMALL = {"model": "toy", "segments": 1, "windows": 1, "adjust_steps": 1}


def add(client: TestClient, **values: Any) -> httpx.Response:
    return client.post("/slimscope/api/submit/sds", json=SMALL | values)


def test_a_guest_adds_one_small_run_behind_all_others_and_cancels_only_that(
    open_to_guests: Visit, web: App
) -> None:
    guest = open_to_guests(OTHER)
    made = add(guest).json()
    job = queries.job(made["id"])
    assert job.owner.startswith("guest-") and scheduling.queued()[-1].id == job.id
    again = add(guest)
    assert again.status_code == 403 and "already have an active run" in again.json()["why"]
    assert guest.post("/slimscope/api/runs/sds-0003/cancel").status_code == 403
    assert "only their own" in raw_act(guest, web, "cancel", "sds-0003")
    stranger = open_to_guests(OTHER)  # the same address, another browser
    assert stranger.post(f"/slimscope/api/runs/{job.run}/cancel").status_code == 403
    assert "is cancelled" in raw_act(guest, web, "cancel", job.run)
    assert guest.post(f"/slimscope/api/runs/{job.run}/resume").status_code == 403
    assert add(guest, seed=2).status_code == 201


def test_a_guest_who_drops_the_cookie_leaves_room_for_others(
    open_to_guests: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, GUEST_RUNS="3")
    codes = [add(open_to_guests(OTHER), seed=i).status_code for i in range(4)]
    assert codes == [201, 201, 403, 403]
    owners = {queries.job(run).owner for run in (6, 7)}
    assert len(owners) == 2 and not any(OTHER in owner for owner in owners)
    codes = [add(open_to_guests(f"10.0.2.{i}"), seed=i).status_code for i in range(4, 6)]
    assert codes == [201, 403]  # all guests together have three


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [("GUEST_SECONDS", "1", "s; the limit is 1 s"), ("GUEST_GB", "0.0001", "GB")],
)
def test_a_guests_run_has_to_be_small(
    open_to_guests: Visit, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    set_up(monkeypatch, **{variable: value})
    refused = add(open_to_guests(OTHER))
    assert refused.status_code == 403 and why in refused.json()["why"]


def test_a_guests_run_has_to_have_an_end_that_can_be_told(
    open_to_guests: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, GUEST_SECONDS="60")
    slow = add(open_to_guests(OTHER), base="alps", reconstruct=50, segments=4096)
    assert slow.status_code == 403 and "the limit is" in slow.json()["why"]
    _, cost = submit.check_and_estimate("evaluation", {"model": "toy"})
    permissions.require_small(Actor("guest-1", "guest"), cost)
    with pytest.raises(ForbiddenError, match="cannot be estimated"):
        permissions.require_small(Actor("guest-1", "guest"), replace(cost, open_ended=True))


def test_a_guest_cannot_sweep_nor_choose_a_priority(open_to_guests: Visit) -> None:
    guest = Actor("guest-1", "guest")
    estimate = submit.check_and_estimate("sds", SMALL)[1]
    with pytest.raises(ForbiddenError, match="one run at a time"):
        service.enqueue_all("sds", [service.NewRun(SMALL)] * 2, guest, cost=estimate)
    with pytest.raises(ForbiddenError, match="cannot be estimated"):
        service.enqueue("sds", SMALL, guest)
    job = service.enqueue("sds", SMALL, guest, priority=10**6, cost=estimate)
    assert job.priority == permissions.GUEST_PRIORITY


def test_of_two_requests_at_once_one_wins(open_to_guests: Visit) -> None:
    guest, estimate = Actor("guest-1", "guest"), submit.check_and_estimate("sds", SMALL)[1]
    start, won = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        with contextlib.suppress(ForbiddenError):
            won.append(service.enqueue("sds", SMALL, guest, cost=estimate))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_guests_name_cannot_be_forged(open_to_guests: Visit) -> None:
    guest = open_to_guests(OTHER)
    run = add(guest).json()["id"]
    owner = queries.job(run).owner
    for value in (owner, f"{owner}.", f"{owner}.{'0' * 64}", "host", '"'):
        forger = open_to_guests(OTHER, cookie=f"{auth.cookie_name('guest')}={value}")
        assert forger.post(f"/slimscope/api/runs/{run}/cancel").status_code == 403
    assert queries.job(run).state == "queued"


def test_the_real_queue_refuses_too(
    blocks: gr.Blocks, web: App, seeded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a socket: `/queue/join` runs the function, which is refused where it would change."""
    body = {
        "fn_index": event_of(web, "runs-queue", "act"),
        "data": [],
        "session_hash": "abc",
        "event_data": {"do": "cancel", "run": "sds-0003"},
    }
    for headers, state in (({"x-forwarded-for": OTHER}, "queued"), ({}, "cancelled")):
        with httpx.Client(base_url=blocks.local_url, headers=headers, timeout=30) as client:
            assert client.post("gradio_api/queue/join", json=body).status_code == 200
            with client.stream("GET", "gradio_api/queue/data?session_hash=abc") as lines:
                told = next(line for line in lines.iter_lines() if "process_completed" in line)
            assert ("Guests have read-only access" in told) == (state == "queued")
            assert queries.job("sds-0003").state == state


# limits -------------------------------------------------------------------------------------------


def test_changes_are_limited_for_each_client(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch)
    monkeypatch.setattr(gate.changes, "limit", 3)
    client = visit()
    codes = [client.post("/slimscope/api/runs/sds-0002/cancel").status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    assert client.get("/slimscope/api/runs").status_code == 200  # looking is free
    with pytest.raises(RateLimitError, match="Try again in"):
        service.cancel(["sds-0002"], Actor("local", "host", "127.0.0.1"))
    service.cancel(["sds-0002"], Actor("mira", "host"))  # the command line is not limited


def test_the_limit_forgets_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rate = [0.0], gate.Rate(2)
    monkeypatch.setattr(gate.time, "monotonic", lambda: clock[0])
    for clock[0] in (0.0, 30.0, 61.0):
        rate.spend_by({"a": 2})
    clock[0] = 62.0
    with pytest.raises(RateLimitError, match="in 28 s"):
        rate.spend_by({"a": 2})
    rate.spend_by({"b": 2})
    clock[0] = 1000.0
    rate.spend_by({"c": 2})
    assert [*rate._times] == ["c"]
