"""Operations of the command line on this machine: the dashboard, MCP, setup, doctor.

`slimscope mcp` is the queue for agents, by the Model Context Protocol over standard input and
output. Its tools are operations. Whoever may start it has a shell on this machine, and so is a
host. The package `mcp` is an extra: `pipx install 'slimscope[mcp]'`.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from pydantic import Field

from backend.errors import ConfigError, SlimscopeError
from backend.models.sources.catalog import materialize
from backend.queue.actor import Actor
from backend.queue.launcher import CODE
from backend.text.wikipedia import main as set_up_text
from jobs.cli.command import EXPECTED, FAILED, in_words
from jobs.cli.doctor import cluster, machine
from jobs.cli.doctor.machine import HealthCheck
from jobs.fields.types import DEFAULT_MODEL
from jobs.operations.registry import OPERATIONS, Operation, Record, operation

ABOUT = """Slimscope compresses causal language models and measures the effect. A run is added to a
queue (submit_run), works for minutes to hours, and ends with figures (results); poll show until its
state is succeeded, failed, cancelled or lost. kinds lists what can be run, and with which
config; models and texts list what it may name. The kind gguf writes a model as GGUF."""
log = logging.getLogger("slimscope.mcp")
CHECKS = (
    machine.variables,
    machine.data_folder,
    machine.privacy,
    machine.disk,
    machine.memory,
    machine.threads,
    machine.device,
    machine.native_decoder,
    machine.clock,
    machine.models,
    machine.cached_models,
    machine.texts,
    machine.database_version,
    machine.integrity,
    machine.copies,
    machine.orphans,
    cluster.artifact_store,
    cluster.engine,
    cluster.nodes,
    machine.supervisor,
)


def build(actor: Actor) -> Any:
    """The server, acting for `actor`. Raises ConfigError: the package `mcp` is not installed."""
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.server.mcpserver.tools import Tool
    except ImportError as error:
        do = "Install it: pipx install 'slimscope[mcp]', or pip install 'mcp>=2'."
        raise ConfigError("The MCP server is not available.", f"{error}.", do) from error
    tools = []
    for entry in OPERATIONS.values():
        if entry.tool:
            call = _tool(entry, actor, ToolError)
            tool = Tool.from_function(call, name=entry.tool, description=entry.description)
            model = tool.fn_metadata.arg_model
            model.model_config["extra"] = "forbid"  # a name that is none is no typing error
            model.model_rebuild(force=True)
            tools.append(tool)
    return MCPServer("slimscope", instructions=ABOUT, version=version("slimscope"), tools=tools)


def _tool(entry: Operation, actor: Actor, tool_error: type[Exception]) -> Callable[..., Any]:
    """The operation as done by `actor`. The agent reads why it failed; whoever starts the server
    may read anything here."""

    def call(**values: Any) -> Any:
        try:
            return entry.call(actor, **values)
        except EXPECTED as error:
            raise tool_error(in_words(error)) from error
        except Exception as error:
            log.exception("%s failed", entry.name)
            why = f"{type(error).__name__}: {error}"
            raise tool_error(f"An unexpected error, which the log describes. {why}") from error

    call.__signature__ = entry.signature  # type: ignore[attr-defined]
    return call


def examine(probes: bool = False) -> list[HealthCheck]:
    """Is everything there that a run needs? Changes nothing but the kept result of the check of the
    database, and starts nothing. `probes`: start a job on the cluster, too."""
    return [check() for check in (*CHECKS, *[cluster.probe] * probes)]


@operation("serve", path="", tool="", database="none", json=False)
def serve(
    host: Annotated[str, Field(description="Address to listen on.")] = "",
    port: Annotated[int, Field(ge=0, le=65535, description="0: as set, or 7860.")] = 0,
) -> None:
    """Open the dashboard, as slimscope alone does."""
    given = {"SLIMSCOPE_HOST": host, "SLIMSCOPE_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in given.items() if value}}
    command = [sys.executable, str(CODE / "app.py")]
    os.execve(command[0], command, environment)


@operation("mcp", path="", tool="", json=False)
def serve_agents(actor: Actor) -> None:
    """Serve the queue to agents over standard input and output (Model Context Protocol)."""
    build(actor).run()


@operation(
    "setup",
    path="",
    tool="",
    database="none",
    as_text=lambda _: "",
    exit_code=lambda made: 0 if made["ready"] else FAILED,
)
def setup(model: Annotated[str, typer.Argument(help="A model of the list.")] = "") -> Record:
    """Fetch the default model, or another, and the sample text."""
    name = model or DEFAULT_MODEL
    try:
        print(f"{name} is ready in {materialize(name, partial(print, flush=True))}")
    except SlimscopeError as error:
        print(error, file=sys.stderr)
        return {"model": name, "ready": False}
    return {"model": name, "ready": not set_up_text()}


def _findings(checks: Sequence[Record]) -> str:
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check['ok'] else 'LOOK'} {check['name']:<14} {check['text']}")
        lines += [f"     {'':<14} -> {check['fix']}"] if check["fix"] else []
    return "\n".join(lines)


@operation(
    "doctor",
    path="",
    tool="",
    as_text=_findings,
    exit_code=lambda checks: 0 if all(check["ok"] for check in checks) else FAILED,
)
def doctor(
    probe: Annotated[
        bool, Field(description="Send a job to the cluster: its versions, and its artifacts.")
    ] = False,
) -> list[Record]:
    """Check this machine and the data folder, and say what to do."""
    return [vars(check) for check in examine(probe)]
