"""Tests of the MCP tools, called like an agent calls them but in the same process."""

import asyncio
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.errors import ConfigError
from backend.queue.actor import Actor
from backend.store import queries
from jobs.cli import server as mcp_server
from jobs.operations.registry import OPERATIONS

mcp = pytest.importorskip("mcp", reason="pip install 'slimscope[mcp]'")
HOST = Actor("mira", "host")
DOCS = Path(__file__).parents[3] / "docs" / "api.md"


def tell(answer: Any) -> Any:
    """Return the value of a tool call, or its error message."""
    if answer.is_error:
        return answer.content[0].text
    content = answer.structured_content
    return content.get("result", content)


def talk(server: Any, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    async def run() -> list[Any]:
        async with mcp.Client(server) as client:
            return [tell(await client.call_tool(name, values)) for name, values in calls]

    return asyncio.run(run())


def test_an_agent_adds_watches_cancels_and_resumes(queue: Path) -> None:
    added, listed, ended, again, record = talk(
        mcp_server.build(HOST),
        ("submit_run", {"kind": "count", "config": {"steps": 7}, "name": "by an agent"}),
        ("runs", {"state": "queued"}),
        ("cancel_run", {"run": "count-0001"}),
        ("resume_run", {"run": "1"}),
        ("show", {"run": "count-0001"}),
    )
    assert (added["id"], added["place"], added["config"]["steps"]) == ("count-0001", 1, 7)
    assert [run["name"] for run in listed] == ["by an agent"]
    assert ended["state"] == "cancelled" and again["state"] == record["state"] == "queued"
    assert queries.job(1).owner == "mira"


def test_every_error_has_a_reason(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: str) -> dict[str, Any]:
        raise OSError("The disk is full.") if run == "1" else RuntimeError("something else")

    monkeypatch.setitem(OPERATIONS._entries, "show", replace(OPERATIONS["show"], function=fail))
    full, unexpected, both, priority = talk(
        mcp_server.build(HOST),
        ("show", {"run": "1"}),
        ("show", {"run": "2"}),
        ("submit_run", {"kind": "count", "config": {"steps": 0, "seed": -1}}),
        ("submit_run", {"kind": "count", "config": {}, "priority": 2**70}),
    )
    assert "The disk is full." in full and "RuntimeError: something else" in unexpected
    assert "steps" in both and "Seed" in both and "The priority was not accepted." in priority
    assert queries.jobs() == []


def test_the_rules_are_those_of_the_queue(queue: Path) -> None:
    (refused,) = talk(
        mcp_server.build(Actor("guest-1", "guest")), ("submit_run", {"kind": "count", "config": {}})
    )
    assert "Guests have read-only access." in refused and queries.jobs() == []


def test_the_command_serves_over_standard_output(queue: Path) -> None:
    async def run() -> list[str]:
        command = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "jobs", "mcp"], env=dict(os.environ)
        )
        async with mcp.Client(command) as client:
            tools = await client.list_tools()
            assert tell(await client.call_tool("runs", {})) == []
            return sorted(tool.name for tool in tools.tools)

    names = asyncio.run(run())
    documented = re.search(r"The tools are (.*?)\. Whoever", DOCS.read_text(), re.DOTALL)
    assert documented and names == sorted(re.findall(r"`(\w+)`", documented[1]))
    assert {"runs", "show", "submit_run", "cancel_run"} <= {*names} and "delete" not in names


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(ConfigError, match="pipx install"):
        mcp_server.build(HOST)
