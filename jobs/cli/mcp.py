"""The queue for agents, by the Model Context Protocol over standard input and output:
`slimscope mcp`. Its tools are operations of `jobs.operations`.

Whoever may start it has a shell on this machine, and so is a host. The package `mcp` is an extra:
`pipx install 'slimscope[mcp]'`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Protocol

from backend.errors import ConfigError
from backend.queue.actor import Actor
from jobs import operations
from jobs.cli.console import EXPECTED, in_words

ABOUT = """Slimscope compresses causal language models and measures the effect. A run is added to a
queue (submit_run), works for minutes to hours, and ends with figures (results); poll show until its
state is succeeded, failed, cancelled or lost. kinds lists what can be run, and with which
config; models and texts list what it may name. The kind gguf writes a model as GGUF."""
Tool = Callable[..., Any]
log = logging.getLogger("slimscope.mcp")
TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        "kinds": operations.list_kinds,
        "runs": operations.list_runs,
        "show": operations.run_status,
        "results": operations.run_results,
        "models": operations.list_models,
        "texts": operations.list_texts,
        "log": operations.run_log,
        "answers": operations.run_answers,
        "artifacts": operations.run_artifacts,
        "sweep": operations.show_sweep,
        "submit_run": operations.submit_run,
        "submit_sweep": operations.submit_sweep,
        "submit_pipeline": operations.submit_pipeline,
        "reproduce_run": operations.reproduce_run,
        "cancel_run": operations.cancel_run,
        "resume_run": operations.resume_run,
    }
)


class Server(Protocol):
    """What the command line needs of the server."""

    def run(self) -> None: ...


def build(actor: Actor) -> Server:
    """The server, acting for `actor`.

    Raises:
        ConfigError: the package `mcp` is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        do = "Install it: pipx install 'slimscope[mcp]', or pip install 'mcp>=2'."
        raise ConfigError("The MCP server is not available.", f"{error}.", do) from error
    server: Any = MCPServer("slimscope", instructions=ABOUT, version=version("slimscope"))
    for name, operation in TOOLS.items():
        server.tool(name=name)(_tool(operation, actor, ToolError))
    served: Server = server
    return served


def _tool(operation: Tool, actor: Actor, tool_error: type[Exception]) -> Tool:
    """The operation without its actor. The agent reads why it failed; whoever starts the server
    may read anything here."""
    signature = inspect.signature(operation, eval_str=True)
    given = {"actor": actor} if "actor" in signature.parameters else {}

    @wraps(operation)
    def call(*args: Any, **values: Any) -> Any:
        try:
            return operation(*args, **values, **given)
        except EXPECTED as error:
            raise tool_error(in_words(error)) from error
        except Exception as error:
            log.exception("%s failed", operation.__name__)
            why = f"{type(error).__name__}: {error}"
            raise tool_error(f"An unexpected error, which the log describes. {why}") from error

    kept = [p for name, p in signature.parameters.items() if name not in given]
    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return call
