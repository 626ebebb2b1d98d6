"""Requests and responses in the format of the OpenAI API: parsing, refusals, and responses built
from events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend.decoding.serving.request import Finished, NewPieces, Piece, Waiting
from backend.errors import ComputeError, ConfigError, OverloadError, SlimscopeError
from jobs.serving.answering import AnswerStarted, WaitNotice
from jobs.serving.one_answer import ResponseBuilder
from jobs.serving.openai_format import Body, error_body, error_headers, read_body
from jobs.serving.transcript import parse_transcript
from tests.refusals import refusal

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAID = [{"role": "user", "content": "Why?"}]


def body(path: str = CHAT, **values: Any) -> Body:
    usual = {"messages": SAID} if path == CHAT else {"prompt": "Why?"}
    return read_body(path, json.dumps({"model": "toy", **usual, **values}).encode())


@pytest.mark.parametrize(
    ("path", "values", "field", "why"),
    [
        (CHAT, {"model": 5}, "model", "string"),
        (CHAT, {"messages": []}, "messages", "at least 1"),
        (CHAT, {"messages": SAID * 201}, "messages", "at most 200"),
        (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages", "'system'"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "",
        ),
        (CHAT, {"n": 1000}, "n", "less than or equal to 16"),
        (CHAT, {"n": True}, "n", "integer"),
        (CHAT, {"stop": ["x"] * 1000}, "stop", "at most 16"),
        (CHAT, {"stop": ""}, "stop", "at least 1"),
        (CHAT, {"temperature": "hot"}, "temperature", "number"),
        (CHAT, {"temperature": 0.001}, "temperature", "0.01"),
        (CHAT, {"top_p": 0}, "top_p", "greater than 0"),
        (CHAT, {"seed": 2**64}, "seed", "less than"),
        (CHAT, {"max_tokens": -1}, "max_tokens", "greater"),
        (CHAT, {"logprobs": 3}, "logprobs", "boolean"),
        (CHAT, {"logit_bias": {"5": 100}}, None, "logit_bias is not supported"),
        (CHAT, {"frequency_penalty": 0.5}, None, "frequency_penalty is not supported"),
        (CHAT, {"tools": [{"type": "function"}]}, None, "tools is not supported"),
        (CHAT, {"tempreature": 1}, "tempreature", "no such parameter"),
        (TEXT, {"prompt": [[1], ["x"]]}, "prompt", ""),
        (TEXT, {"prompt": [-1]}, "prompt", "greater"),
        (TEXT, {"prompt": ["x"] * 65}, "prompt", "at most 64"),
        (TEXT, {"prompt": "x" * 500_001}, "prompt", "at most 500000"),
        (TEXT, {"messages": SAID}, "messages", "no such parameter"),
    ],
)
def test_errors_name_the_invalid_field(
    path: str, values: dict[str, Any], field: str, why: str
) -> None:
    with refusal(field, why, error=ConfigError):
        body(path, **values)


@pytest.mark.parametrize("text", [b"", b"[]", b"5", b"{", b'"x"', b"\xff", b"[" * 10_000])
def test_malformed_requests_are_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="not accepted"):
        read_body(CHAT, text)


def test_parameters_without_effect_are_accepted() -> None:
    sent = body(
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        tools=None,
        user="x",
        n=None,
        response_format={"type": "text"},
        stream_options={"include_usage": True},
        store=False,
        messages=[{"role": "developer", "content": [{"type": "text", "text": "Be short."}]}, *SAID],
    )
    assert sent.prompts == [[{"role": "system", "content": "Be short."}, *SAID]] and sent.n == 1
    for prompt, read in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1]], [[1]]),
    ):
        assert body(TEXT, prompt=prompt).prompts == read


# answers ------------------------------------------------------------------------------------------


PIECES = [Piece("Hi", 0, 7, -0.5, ((7, -0.5), (8, -1.5))), Piece("", 1, 9, -0.1)]
HI = NewPieces(PIECES, ["x"], 3.0, {n: f"<{n}>" for n in (7, 8, 9)})
END = Finished("length", "!", 4, 2, 2, 0.25)
EVENTS = (
    WaitNotice("Loading Toy", 4.2),
    AnswerStarted("native", False, 2),
    Waiting(3, 4.0),
    HI,
    END,
)


async def _all(stream: AsyncIterator[bytes]) -> str:
    return b"".join([piece async for piece in stream]).decode()


def answer(asked: Body, *events: Any) -> ResponseBuilder:
    async def given() -> AsyncIterator[tuple[int, Any]]:
        for event in events:
            yield 0, event

    return ResponseBuilder(asked, given())


def chunks(asked: Body, *events: Any) -> tuple[list[Any], str]:
    """The chunks of a stream, and all of it."""
    text = asyncio.run(_all(answer(asked, *events).stream()))
    found = [part[6:] for part in text.split("\n\n") if part.startswith("data: ")]
    return [json.loads(part) if part != "[DONE]" else part for part in found], text


def test_a_chat_streams_chunks_and_comments() -> None:
    asked = body(stream=True, stream_options={"include_usage": True}, details=True)
    found, text = chunks(asked, *EVENTS)
    assert [c["choices"][0]["delta"] for c in found[:3]] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {"content": "!"},
    ]
    assert [c["choices"][0]["finish_reason"] for c in found[:3]] == [None, None, "length"]
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert found[3]["choices"] == [] and found[3]["usage"].items() >= usage.items()
    assert found[4] == "[DONE]" and found[0]["object"] == "chat.completion.chunk"
    assert ': {"waits": "Loading Toy", "about": 4.2}' in text and "3 before you" in text
    written = parse_transcript([c["slimscope"] for c in found[1:3]])
    assert (written.text, written.end, written.tokens) == ("Hi!", "limit", [("Hi", 0), ("", 1)])
    assert not any("slimscope" in c for c in chunks(body(stream=True), *EVENTS)[0][:-1])


def test_a_full_response_has_log_probabilities() -> None:
    chat = asyncio.run(answer(body(logprobs=True, top_logprobs=2), *EVENTS).response())
    (choice,) = chat["choices"]
    assert choice["message"]["content"] == "Hi!" and choice["finish_reason"] == "length"
    first = choice["logprobs"]["content"][0]
    assert (first["token"], first["logprob"]) == ("<7>", -0.5) and len(first["top_logprobs"]) == 2
    text = asyncio.run(answer(body(TEXT, logprobs=1), *EVENTS).response())
    assert text["object"] == "text_completion" and text["choices"][0]["text"] == "Hi!"
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["<7>", "<9>"],
        "token_logprobs": [-0.5, -0.1],
        "text_offset": [0, 2],
        "top_logprobs": [{"<7>": -0.5, "<8>": -1.5}, {}],
    }


BROKE = ComputeError("It broke.")


@pytest.mark.parametrize("failure", [BROKE, Finished("error", "", 4, 0, 1, 0.1, BROKE)])
def test_an_error_ends_the_stream(failure: Any) -> None:
    found, text = chunks(body(stream=True), *EVENTS[:-1], failure)
    assert found[-1]["error"]["message"] == "It broke." and "[DONE]" not in text
    with pytest.raises(ComputeError):
        asyncio.run(answer(body(), *EVENTS[:-1], failure).response())


@pytest.mark.parametrize(
    ("error", "status", "found", "kind"),
    [
        (ConfigError("x"), 0, 400, "invalid_request_error"),
        (SlimscopeError("x"), 0, 500, "server_error"),
        (ConfigError("x"), 401, 401, "authentication_error"),
        (OverloadError("x", retry_after_s=3.2, requests_ahead=4), 0, 429, "rate_limit_error"),
    ],
)
def test_errors_have_their_type(error: SlimscopeError, status: int, found: int, kind: str) -> None:
    code, content = error_body(error, status)
    assert (code, content["error"]["type"]) == (found, kind)
    assert (error_headers(error) == {"retry-after": "3"}) == isinstance(error, OverloadError)
