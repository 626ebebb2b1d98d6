"""Bodies with many values: refused before they are parsed, after the permission of who sends."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from backend.errors import ConfigError
from jobs.serving.openai_format import ChatBody, CompletionBody, read_body
from tests.ui.visits import OTHER, TOKEN, Visit, set_up
from ui.security import middleware
from ui.security.middleware import MAX_NAMES, MAX_TEXTS, MAX_VALUES, json_problem

MANY = 300_000
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
ATTACKS: list[tuple[str, Any]] = [
    (TEXT, {"model": "toy", "prompt": ["x", *([0] * MANY)]}),
    (TEXT, {"model": "toy", "prompt": [1] * (MANY - 1) + [-1]}),
    (TEXT, {"model": "toy", "prompt": "x", **{f"k{n}": 0 for n in range(60_000)}}),
    (CHAT, {"model": "toy", "messages": [{"role": "user", "content": [1] * MANY}]}),
    (CHAT, {"model": "toy", "messages": [1] * 15_000}),
    (CHAT, {"model": "toy", "messages": [[""] * MANY]}),
    (CHAT, {"model": "toy", "messages": [{f"k{n}": 0 for n in range(15_000)}]}),
    ("/slimscope/workbench/live", {"model": "toy", "state": [1] * MANY}),
    ("/slimscope/workbench/live", {f"k{n}": 0 for n in range(15_000)}),
    ("/slimscope/api/sweeps/sds", {"config": {}, "sweep": {f"k{n}": [1] for n in range(9000)}}),
    ("/gradio_api/run/predict", {f"k{n}": 0 for n in range(15_000)}),
    ("/slimscope/api/submit/sds", {"config": {"seed": [1] * MANY}}),
]


def compact(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


@pytest.mark.parametrize(("path", "body"), ATTACKS)
def test_many_values_are_refused(
    path: str, body: Any, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = visit().post(path, content=compact(body))
    assert answer.status_code in (400, 404, 413, 422), answer.text[:200]
    assert len(answer.content) < 2000


def test_who_may_not_ask_is_refused_before_the_body_is_read(
    shared: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, HOST="0.0.0.0", GUEST_ANSWERS="0")
    monkeypatch.setattr(middleware, "json_problem", lambda *_: pytest.fail("it was read"))
    for path, body in ATTACKS[:9]:
        assert shared(OTHER).post(path, content=compact(body)).status_code == 403


def test_values_are_counted_outside_of_texts() -> None:
    commas = "," * 2 * MAX_VALUES
    assert json_problem(json.dumps({"text": commas, "quote": '"' + commas}).encode()) == ""
    for body in (b"[" + b"1," * MAX_VALUES + b"1]", b'["\\\\",' + b"1," * MAX_VALUES + b"1]"):
        assert "more than 20,000 values" in json_problem(body)
    assert "not valid JSON" in json_problem(b'["' + b'\\",' * MAX_VALUES)  # a text without an end
    assert json_problem(b"[" + b"1," * (MAX_VALUES - 1) + b"1]") == ""


def test_texts_and_names_are_counted() -> None:
    texts = json.dumps(["", '\\"'] * (MAX_TEXTS // 2))
    assert json_problem(texts.encode(), MANY) == ""
    assert "more than 20,000 texts" in json_problem(f'[{texts}, ""]'.encode(), MANY)
    names = {f"k{n}": 0 for n in range(MAX_NAMES)}
    assert json_problem(compact([names] * 2).encode()) == ""
    assert "more than 1,000 names" in json_problem(compact([names | {"x": 0}]).encode())


def test_nothing_is_counted_in_another_encoding() -> None:
    assert "not valid JSON" in json_problem(json.dumps(["\\"]).encode("utf-16"))


@pytest.mark.parametrize("role", ["guest", "host"])
def test_token_ids_by_the_thousands_are_for_hosts(
    role: str, shared: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, GUEST_ANSWERS="8")
    headers = {"authorization": f"Bearer {TOKEN}"} if role == "host" else {}
    body = compact({"model": "toy", "prompt": [-1] * (MAX_VALUES + 1)})
    form = {"content-type": "application/x-www-form-urlencoded"}  # read as JSON all the same
    answer = shared(OTHER, **headers).post(TEXT, content=body, headers=form)
    assert answer.status_code == (400 if role == "host" else 422), answer.text[:200]


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        (CompletionBody, TEXT, {"model": "toy", "prompt": [None] * 5000}),
        (ChatBody, CHAT, {"model": "toy", "messages": [{"role": "x"}] * 200}),
    ],
)
def test_validation_ends_at_the_first_of_many_errors(
    kind: type[ChatBody | CompletionBody], path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 10
    with pytest.raises(ConfigError):
        read_body(path, json.dumps(body).encode())
