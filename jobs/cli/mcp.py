"""The queue for agents, by the Model Context Protocol over standard input and output:
`slimscope mcp`. Its tools are the functions the command line and the API use, its errors theirs.

Whoever may start it has a shell on this machine, and so is a host. The package `mcp` is an extra:
`pip install -e '.[mcp]'`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from backend.errors import ConfigError, SlimscopeError
from backend.queue import service, supervisor
from backend.queue.service import Actor
from backend.store import queries
from backend.store.states import State
from jobs import record, submit
from jobs.kind import kind_named

if TYPE_CHECKING:
    from mcp.server import MCPServer

ABOUT = """Slimscope compresses causal language models and measures what that does to them. A run
is added to a queue (submit), works for minutes to hours, and ends with figures (results); look with
show until its state is succeeded, failed, cancelled or lost. kinds tells what can be run, and with
which config."""
MOST = 500

Answer = dict[str, Any]
Tool = Callable[..., Any]


def build(actor: Actor) -> MCPServer:
    """The server, for one who asks.

    Raises:
        ConfigRefused: the package `mcp` is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        do = "In the folder of Slimscope: pip install -e '.[mcp]'."
        raise ConfigError("There is no MCP server here.", f"{error}.", do) from error

    def in_words(tool: Tool) -> Tool:
        """Our errors are for the agent to read; others stay in the log."""

        @wraps(tool)
        def call(*args: Any, **values: Any) -> Any:
            try:
                return tool(*args, **values)
            except SlimscopeError as error:
                raise ToolError(str(error)) from error

        return call

    server = MCPServer("slimscope", instructions=ABOUT)
    tools: tuple[Tool, ...] = (kinds, runs, show, results, *changes(actor))
    for tool in tools:
        server.tool()(in_words(tool))
    return server


def kinds() -> list[Answer]:
    """The kinds of run: presets, and the JSON schema of the config."""
    return record.kinds_record()


def runs(state: State | None = None, kind: str | None = None, limit: int = 50) -> list[Answer]:
    """Runs, the newest first."""
    found = queries.jobs([state] if state else None, kind, max(1, min(limit, MOST)))
    return [record.summary(job) for job in found]


def show(run: str) -> Answer:
    """State, stage, progress and config of a run, such as sds-0042, and its error if it failed."""
    job = queries.job(run)
    return record.summary(job) | {"place": queries.status().position(job.id)}


def results(run: str) -> list[Answer]:
    """The figures a run ended with: stage, metric, value, standard error."""
    return record.results(queries.job(run).id)


def changes(actor: Actor) -> tuple[Tool, ...]:
    """The tools that change something, for one who asks."""

    def submit_run(
        kind: str, config: Answer, preset: str = "", name: str = "", priority: int = 0
    ) -> Answer:
        """Adds a run to the queue. The config holds what differs from the preset or the
        defaults."""
        values = {**kind_named(kind).preset(preset), **config}
        job = submit.submit(kind, values, actor, name=name, priority=priority)
        supervisor.ensure()
        return show(job.run)

    def cancel_run(run: str) -> Answer:
        """Asks a run to end at its next safe point; asked twice, it is killed."""
        service.cancel(run, actor)
        supervisor.ensure()
        return show(run)

    def resume_run(run: str) -> Answer:
        """Queues a failed, cancelled or lost run again, from its last checkpoint."""
        job = service.resume(run, actor)
        supervisor.ensure()
        return show(job.run)

    return submit_run, cancel_run, resume_run
