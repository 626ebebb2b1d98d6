"""The queue for agents, by the Model Context Protocol over standard input and output:
`slimscope mcp`. Its tools are operations.

Whoever may start it has a shell on this machine, and so is a host. The package `mcp` is an extra:
`pipx install 'slimscope[mcp]'`.
"""

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from backend.errors import ConfigError
from backend.queue.actor import Actor
from jobs.cli.console import EXPECTED, in_words
from jobs.operations.registry import OPERATIONS, Operation

ABOUT = """Slimscope compresses causal language models and measures the effect. A run is added to a
queue (submit_run), works for minutes to hours, and ends with figures (results); poll show until its
state is succeeded, failed, cancelled or lost. kinds lists what can be run, and with which
config; models and texts list what it may name. The kind gguf writes a model as GGUF."""
log = logging.getLogger("slimscope.mcp")


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
    for operation in OPERATIONS.values():
        if operation.tool:
            call = _tool(operation, actor, ToolError)
            tool = Tool.from_function(call, name=operation.tool, description=operation.about)
            model = tool.fn_metadata.arg_model
            model.model_config["extra"] = "forbid"  # a name that is none is no typing error
            model.model_rebuild(force=True)
            tools.append(tool)
    return MCPServer("slimscope", instructions=ABOUT, version=version("slimscope"), tools=tools)


def _tool(operation: Operation, actor: Actor, tool_error: type[Exception]) -> Callable[..., Any]:
    """The operation as done by `actor`. The agent reads why it failed; whoever starts the server
    may read anything here."""

    def call(**values: Any) -> Any:
        try:
            return operation.call(actor, **values)
        except EXPECTED as error:
            raise tool_error(in_words(error)) from error
        except Exception as error:
            log.exception("%s failed", operation.name)
            why = f"{type(error).__name__}: {error}"
            raise tool_error(f"An unexpected error, which the log describes. {why}") from error

    call.__signature__ = operation.signature  # type: ignore[attr-defined]
    return call
