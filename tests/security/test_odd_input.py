"""Configs and pipelines with anything in them: accepted, or refused with a sentence."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import SlimscopeError
from backend.queue.actor import Actor
from jobs import pipeline, submit
from jobs.cli.server import build
from jobs.kind import kinds
from jobs.operations.registry import OPERATIONS

ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**70,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "\0",
        "../../etc/passwd",
        "/",
        "~",
        "http://127.0.0.1:1/x",
        "toy",
        "toy,toy",
        "sds-0001",
        "example-",
        "sds-example",
        "2:4",
        "0:0",
        "4:2",
        "1e400%",
        "-50%",
        "100.1%",
        "*",
        "a" * 5000,
        "q_proj=2:4," * 100,
        "\x1b[31m",
        "\u202e",
        "\ud800",
        [],
        [[]],
        ["toy"],
        {},
        {"x": 1},
        b"x",
    ]
)
BASE: Mapping[str, dict[str, Any]] = {kind: {"model": "toy"} for kind in kinds()}
QUIET = settings(derandomize=True, database=None)


def said(error: SlimscopeError) -> str:
    """The sentence of an error, which has one, and names a field that exists."""
    assert error.what and len(str(error)) < 3_000
    return str(error)


@pytest.mark.parametrize("kind", BASE)
@QUIET
@given(data=st.data())
def test_a_config_is_accepted_or_refused(tables: object, kind: str, data: st.DataObject) -> None:
    names = st.sampled_from([*kinds()[kind].config.model_fields, "no_such_field"])
    values = BASE[kind] | data.draw(st.dictionaries(names, ODD, min_size=1, max_size=3))
    try:
        config, estimate = submit.check_and_estimate(kind, values)
    except SlimscopeError as error:
        said(error)
        return
    assert config.model_dump(mode="json") and estimate.bytes >= 0


TOOLS = [each for each in OPERATIONS.values() if each.tool]
JSON = ODD.filter(lambda value: not isinstance(value, bytes) and value == value)


@QUIET
@given(data=st.data())
def test_a_tool_answers_or_says_what_is_wrong(
    tables: object, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    mcp = pytest.importorskip("mcp")
    tool = data.draw(st.sampled_from(TOOLS))
    names = st.sampled_from([*tool.signature.parameters, "no_such_parameter"])
    values = data.draw(st.dictionaries(names, JSON, max_size=4))

    async def call() -> Any:
        async with mcp.Client(build(Actor("guest", "guest"))) as client:
            return await client.call_tool(tool.tool, values)

    try:
        answer = asyncio.run(call())
    except UnicodeEncodeError:  # a lone surrogate is no JSON
        return
    told = " ".join(each.text for each in answer.content if answer.is_error)
    assert "unexpected error" not in told and "Traceback" not in told, (tool.name, values, told)
    wrong = tool.writes or "no_such_parameter" in values
    assert answer.is_error or not wrong, (tool.name, values)
    assert bool(told) == answer.is_error and [r for r in caplog.records if r.exc_info] == []


TEXT = pipeline.preset("prune, quantize, draft", "toy")
PIECES = st.sampled_from(
    [
        "",
        "- sds: {}",
        "steps:",
        "model: toy",
        "[",
        "{",
        "}",
        "&a",
        "*a",
        "!!python/object:os.system",
        "? ",
        ": ",
        "- ",
        "\t",
        "\n",
        "- nothing: {}",
        "alone: yes",
        "preset: none",
        "0",
        "2:4",
        "null",
        "!!int x",
        "!!binary x",
        "- sds: [1]",
        "- [sds]",
        "pattern:",
        "\0",
        "\ud800",
        "<<: {a: b}",
    ]
)


@QUIET
@given(
    cuts=st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 30), PIECES), max_size=4),
    depth=st.sampled_from([0, 0, 0, 5_000]),
)
def test_a_pipeline_is_read_or_refused(
    tables: object, cuts: list[tuple[int, int, str]], depth: int
) -> None:
    text = TEXT
    for start, length, piece in cuts:
        text = text[:start] + piece + text[start + length :]
    text = text + "[" * depth
    try:
        assert pipeline.plan(pipeline.read(text))
    except SlimscopeError as error:
        said(error)


@pytest.mark.parametrize("kind", ["", "nothing", "../sds", "sds\0"])
def test_a_kind_is_one_there_is(tables: object, kind: Any) -> None:
    with pytest.raises(SlimscopeError):
        submit.check_and_estimate(kind, {})
