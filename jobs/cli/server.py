"""Operations of the command line on this machine: the dashboard, MCP, setup, doctor."""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer
from pydantic import Field

from backend.errors import SlimscopeError
from backend.models.sources.catalogue import materialise
from backend.queue.actor import Actor
from backend.queue.launcher import CODE
from backend.text.wikipedia import main as set_up_text
from jobs.cli.console import FAILED
from jobs.cli.doctor import cluster, machine
from jobs.cli.doctor.machine import HealthCheck
from jobs.cli.mcp import build
from jobs.fields.types import DEFAULT_MODEL
from jobs.operations.registry import Record, operation

CHECKS = (
    machine.variables, machine.data_folder, machine.privacy, machine.disk, machine.memory,
    machine.threads, machine.device, machine.native_decoder, machine.clock, machine.models,
    machine.cached_models, machine.texts, machine.database_version, machine.integrity,
    machine.copies, machine.orphans, cluster.artefact_store, cluster.engine, cluster.nodes,
    machine.supervisor,
)  # fmt: skip


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
    "setup", path="", tool="", database="none", said=lambda _: "",
    exit_code=lambda made: 0 if made["ready"] else FAILED,
)  # fmt: skip
def setup(model: Annotated[str, typer.Argument(help="A model of the list.")] = "") -> Record:
    """Fetch the default model, or another, and the sample text."""
    name = model or DEFAULT_MODEL
    try:
        print(f"{name} is ready in {materialise(name, partial(print, flush=True))}")
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
    "doctor", path="", tool="", said=_findings,
    exit_code=lambda checks: 0 if all(check["ok"] for check in checks) else FAILED,
)  # fmt: skip
def doctor(
    probe: Annotated[
        bool, Field(description="Send a job to the cluster: its versions, and its artefacts.")
    ] = False,
) -> list[Record]:
    """Check this machine and the data folder, and say what to do."""
    return [vars(check) for check in examine(probe)]
