"""Commands for this machine: the dashboard, the MCP server, setup and doctor.

`slimscope mcp` serves the operations to agents as tools (Model Context Protocol over standard input
and output). Its user has a shell on this machine and is therefore a host. It needs the optional
package `mcp`: `pipx install 'slimscope[mcp]'`.
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
from jobs.cli.app import EXPECTED, FAILED, in_words
from jobs.cli.doctor import cluster, machine
from jobs.cli.doctor.gpu import trial
from jobs.cli.doctor.machine import HealthCheck
from jobs.fields.types import DEFAULT_MODEL
from jobs.operations.registry import OPERATIONS, Operation, Record, operation

INSTRUCTIONS = """Slimscope compresses causal language models and measures the effect. submit_run
adds a run to the queue. It takes minutes to hours and ends with figures (results). Poll show until
its state is succeeded, failed, cancelled or lost. kinds lists the kinds of run with their configs;
models and texts list the values of these fields. The kind gguf exports a model as GGUF."""
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
    machine.speeds,
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
    """Create the MCP server, which acts for `actor`. Raises `ConfigError` if the package `mcp` is
    not installed."""
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.server.mcpserver.tools import Tool
    except ImportError as error:
        advice = "Install it: pipx install 'slimscope[mcp]', or pip install 'mcp>=2'."
        raise ConfigError("The MCP server is not available.", f"{error}.", advice) from error
    tools = []
    for entry in OPERATIONS.values():
        if entry.tool:
            call = _tool(entry, actor, ToolError)
            tool = Tool.from_function(call, name=entry.tool, description=entry.description)
            model = tool.fn_metadata.arg_model
            model.model_config["extra"] = "forbid"  # reject unknown parameters
            model.model_rebuild(force=True)
            tools.append(tool)
    return MCPServer(
        "slimscope", instructions=INSTRUCTIONS, version=version("slimscope"), tools=tools
    )


def _tool(entry: Operation, actor: Actor, tool_error: type[Exception]) -> Callable[..., Any]:
    """Return an operation as a tool function for `actor`. Errors are sent to the agent in full: the
    user of the server may read everything on this machine."""

    def call(**values: Any) -> Any:
        try:
            return entry.call(actor, **values)
        except EXPECTED as error:
            raise tool_error(in_words(error)) from error
        except Exception as error:
            log.exception("%s failed", entry.name)
            details = f"{type(error).__name__}: {error}"
            raise tool_error(f"Unexpected error; see the log. {details}") from error

    call.__signature__ = entry.signature  # type: ignore[attr-defined]
    return call


def examine(probes: bool = False) -> list[HealthCheck]:
    """Check the installation. Changes only the stored result of the database check. With `probes`,
    also start a job on the cluster."""
    return [check() for check in (*CHECKS, *[cluster.probe] * probes)]


@operation("serve", path="", tool="", database="none", json=False)
def serve(
    host: Annotated[str, Field(description="Address to listen on.")] = "",
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port. 0: SLIMSCOPE_PORT, or 7860.")
    ] = 0,
) -> None:
    """Open the dashboard. The same as slimscope without a command."""
    variables = {"SLIMSCOPE_HOST": host, "SLIMSCOPE_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items() if value}}
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
    exit_code=lambda record: 0 if record["ready"] else FAILED,
)
def setup(model: Annotated[str, typer.Argument(help="Name of a catalog model.")] = "") -> Record:
    """Download the default or another model, and the sample text."""
    name = model or DEFAULT_MODEL
    try:
        print(f"{name} is ready in {materialize(name, partial(print, flush=True))}")
    except SlimscopeError as error:
        print(error, file=sys.stderr)
        return {"model": name, "ready": False}
    return {"model": name, "ready": not set_up_text()}


def _checks_text(checks: Sequence[Record]) -> str:
    lines = []
    width = max(14, *(len(check["name"]) for check in checks))
    for check in checks:
        lines.append(
            f"{'ok  ' if check['ok'] else 'LOOK'} {check['name']:<{width}} {check['text']}"
        )
        lines += [f"     {'':<{width}} -> {check['fix']}"] if check["fix"] else []
    return "\n".join(lines)


@operation(
    "doctor",
    path="",
    tool="",
    as_text=_checks_text,
    exit_code=lambda checks: 0 if all(check["ok"] for check in checks) else FAILED,
)
def doctor(
    probe: Annotated[
        bool, Field(description="Start a test job on the cluster: versions and artifact store.")
    ] = False,
    gpu: Annotated[
        bool, Field(description="Run every method on the GPU instead, in about a minute.")
    ] = False,
) -> list[Record]:
    """Check this machine and the data folder, and suggest fixes."""
    return [vars(check) for check in (trial() if gpu else examine(probe))]
