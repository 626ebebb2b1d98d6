"""What no page sends: calls and requests with changed values, as a guest. Each is refused in one
line of the log, without a trace, and the dashboard goes on."""

import json
import logging
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import quote

import gradio as gr
import pytest
from gradio import processing_utils
from gradio.routes import App
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.testclient import TestClient

from jobs.operations.registry import OPERATIONS
from tests.conftest import ATTACK
from tests.ui.visits import OTHER, TOKEN, Visit, event_of
from ui.api_errors import API_PATH

attack = examples(max_examples=60 * ATTACK, derandomize=ATTACK == 1)
FILE = {"path": "http://127.0.0.1:9/", "meta": {"_type": "gradio.FileData"}}
RARE: list[Any] = ["\0", "\ud800", 10**40, float("inf"), float("nan"), FILE, [[[]]] * 3]
SAID = ["sds-0001", "sds-0002", f"sds-{10**19}", "../..", "cancel", "-1", "0", "x" * 5000, "%s{}"]
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
texts |= st.sampled_from(SAID)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
values |= st.sampled_from(RARE)
fitting = {  # values a component may have
    gr.Checkbox: st.booleans(),
    gr.Number: numbers,
    gr.Slider: numbers,
    gr.HTML: values,
    gr.JSON: values,
    gr.Textbox: texts,
    gr.Dropdown: texts | st.lists(texts, max_size=3),
}
deeds = st.dictionaries(st.sampled_from(["do", "run", "file", "text"]), values) | values


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def answered(client: TestClient, method: str, path: str, **options: Any) -> int:
    """The status of the answer, below 500, and nothing but single lines in the log."""
    headers = {"content-type": "application/json"}
    status = client.request(method, path, headers=headers, **options).status_code
    assert status < 500, (method, path, options)
    return status


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing is traced."""
    caplog.set_level(logging.WARNING)
    yield
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    assert [r.getMessage() for r in caplog.records if r.exc_info] == []


@attack
@given(data=st.data())
def test_calls_no_page_makes_are_refused(
    quiet: None, shared: Visit, web: App, data: st.DataObject
) -> None:
    functions = web.get_blocks().fns
    number = data.draw(st.sampled_from([*functions]) | st.integers(-1, 10**6))
    sent = data.draw(values | st.lists(values, max_size=3))
    if number in functions and data.draw(st.booleans()):
        inputs = functions[number].inputs
        sent = [getattr(block, "value", None) for block in inputs]
        for place in range(len(inputs)):
            kinds = [made for kind, made in fitting.items() if isinstance(inputs[place], kind)]
            if data.draw(st.booleans()):
                sent[place] = data.draw(kinds[0] if kinds else values)
    body = {
        "fn_index": number,
        "data": sent,
        "event_data": data.draw(deeds),
        "session_hash": data.draw(st.sampled_from(["abc", None, "x" * 99, "../"])),
        "trigger_id": data.draw(st.none() | st.integers(-1, 2000)),
    }
    client = shared(OTHER)
    answered(client, "POST", "/gradio_api/run/predict", content=encoded(body))
    assert client.get("/slimscope/pulse").status_code == 200


SERVED = [each for each in OPERATIONS.values() if each.path]
paths = st.sampled_from(
    [
        *(re.sub(r"{\w+}", "{}", each.path[1:]) for each in SERVED),
        "{}",
        "submit/sds",
        "submit/generate",
        "sweeps/sds",
    ]
)
names = st.sampled_from([*{name for each in SERVED for name in each.parameters}, "no_such"])
HOST = {"authorization": f"Bearer {TOKEN}"}
fields = st.sampled_from(
    ["config", "sweep", "model", "pattern", "seed", "prompt", "sides", "steps"]
)


@attack
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD"]),
    path=paths,
    run=texts,
    query=st.dictionaries(names, st.integers().map(str) | texts, max_size=3),
    body=st.none() | st.dictionaries(fields, values, max_size=3) | values,
    data=st.data(),
)
def test_requests_with_changed_values_are_refused(
    quiet: None,
    open_to_guests: Visit,
    method: str,
    path: str,
    run: str,
    query: dict[str, str],
    body: Any,
    data: st.DataObject,
) -> None:
    client = open_to_guests(OTHER, **data.draw(st.sampled_from([{}, HOST])))
    asked = "&".join(f"{n}={quote(v, errors='surrogatepass')}" for n, v in query.items())
    where = f"{API_PATH}/{path.format(quote(run, safe='', errors='surrogatepass'))}?{asked}"
    answered(client, method, where, content=None if body is None else encoded(body))
    assert client.get("/slimscope/pulse").status_code == 200


# calls that are known -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["a%00b", "slimscope/api/runs/%00", "run?run=%00", "a/%00"])
def test_an_address_with_nul_is_refused(quiet: None, shared: Visit, address: str) -> None:
    assert answered(shared(OTHER), "GET", f"/{address}") == 400


@pytest.mark.parametrize(
    "body",
    [b"[" * 400_000, b"[" * 100 + b"]" * 100, rb'{"a": "\u0000"}', rb'["\ud800"]', b"[1e999]"],
)
def test_what_cannot_be_stored_is_refused(
    quiet: None, shared: Visit, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (f"{API_PATH}/submit/sds", f"{API_PATH}/pipelines", "/gradio_api/run/predict"):
        assert answered(shared(OTHER), "POST", path, content=body) == 422
    assert len(caplog.messages) == 3 and all("\n" not in said for said in caplog.messages)


def test_json_by_another_name_is_checked_too(quiet: None, shared: Visit) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded+json"}
    for path in (f"{API_PATH}/pipelines", "/gradio_api/run/predict"):
        answer = shared(OTHER).post(path, content=rb'{"a": "\u0000"}', headers=headers)
        assert answer.status_code == 422 and "cannot be stored" in answer.text


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """What a web server of this machine is asked for; its address is the first."""
    seen: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(404)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        seen.append(f"http://127.0.0.1:{server.server_port}/secret")
        yield seen
        server.shutdown()


def test_nobody_makes_the_dashboard_ask_another_server(
    visit: Visit, web: App, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing_utils, "PUBLIC_HOSTNAME_WHITELIST", ["127.0.0.1"])
    file = {"path": asked[0], "url": asked[0], "meta": {"_type": "gradio.FileData"}}
    host, done = visit(), set[type]()
    for number, function in web.get_blocks().fns.items():
        kinds = {type(block) for block in function.inputs}
        if function.fn is None or kinds <= done:
            continue
        done |= kinds
        for value in (file, [file], {"a": [{"b": file}]}, json.dumps(file)):
            body = {"fn_index": number, "data": [value] * len(function.inputs), "session_hash": "x"}
            host.post("/gradio_api/run/predict", json=body | {"event_data": value})
    assert done and asked[1:] == []


def test_a_visitor_leaves_room_in_the_queue(
    open_to_guests: Visit, web: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = web.get_blocks()._queue
    monkeypatch.setattr(queue, "event_queue_per_concurrency_id", {})
    monkeypatch.setattr(queue, "event_ids_to_events", {})
    monkeypatch.setattr(queue, "active_jobs", [])  # nothing is done
    body = {"fn_index": event_of(web, "runs-queue", "act"), "data": [], "session_hash": "left"}
    join = "/gradio_api/queue/join"
    guest = open_to_guests(OTHER)
    assert guest.get("/slimscope/pulse").status_code == 200  # who has a name from now on
    codes = [guest.post(join, json=body).status_code for _ in range(12)]
    assert codes == 8 * [200] + 4 * [429]
    assert open_to_guests("10.0.0.9").post(join, json=body).status_code == 200
