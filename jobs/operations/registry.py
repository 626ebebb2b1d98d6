"""The registry of operations on the queue and on this machine. Commands, HTTP requests with their
documentation, MCP tools and buttons are generated from it.

    @operation("pin", writes=True)
    def pin(run: Run, actor: Actor, note: str = "") -> Record:
        \"\"\"Pin a run.\"\"\"

defines the command `slimscope pin RUN --note TEXT`, the request `POST /runs/{run}/pin?note=` and
the MCP tool `pin`, all for hosts only. The services that an operation calls also check permissions.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from backend.queue import permissions
from backend.queue.actor import Actor
from backend.registry import Declarations, Registry
from backend.store import queries
from backend.store.tables import Job
from jobs.record import summary

Record = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])
Run = Annotated[str, Field(description="A run, such as sds-0042, or its number.")]
Runs = Annotated[list[str], Field(description="Runs, such as sds-0042.")]


@dataclass(frozen=True)
class Button:
    """A button that calls an operation on those of the selected runs to which it applies.

    Attributes:
        name: unique name of the button.
        text: label.
        applies_to: returns True if the operation can be called on a run.
        question: returns the confirmation question for these runs; "" for none.
        prompt: label of a text input; "{runs}" is replaced by the names of the runs.
        parameter: parameter of the operation that receives the entered text.
        initial: returns the initial content of the text input.
        values: fixed values of other parameters.
        group: position on the page: "queue" is shown with the state of the run, "order" with the
            buttons that organize the list, "disk" with the disk usage.
        bulk: True if the button is offered for several runs at once.
    """

    name: str
    text: str
    applies_to: Callable[[Job], bool]
    question: Callable[[Sequence[Job]], str] = lambda _: ""
    prompt: str = ""
    parameter: str = ""
    initial: Callable[[Sequence[Job]], str] = lambda _: ""
    values: Mapping[str, Any] = field(default_factory=dict)
    group: Literal["queue", "order", "disk"] = "order"
    bulk: bool = True


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation and how it is exposed.

    Attributes:
        name: name of the command; also the default path and tool name.
        function: the implementation. Receives the calling user if it has a parameter `actor`. If
            it has a parameter `runs`, it changes all of them or none and returns the changed
            records.
        writes: True if it changes state: POST instead of GET.
        access: "anyone": no check; "guest": the called services check permissions; "host": guests
            are rejected before the call.
        action: verb phrase that completes "guest may not …" in the error message.
        may_not: returns the reason why an actor may not change a run of this owner; "" if allowed.
            Used to disable buttons.
        path: HTTP path; "" if the operation is not served over HTTP.
        tool: name of the MCP tool; "" if there is none.
        command: True if the command line offers it.
        status: HTTP status on success.
        database: "ready": created and migrated before the call; "optional": used if it exists;
            "none": not used.
        as_text: formats the result as text; None for the default table.
        exit_code: returns the exit code of the command for a result.
        question: returns the confirmation question of the command line, which `--yes` skips.
        adds_runs: True if the operation queues runs and returns them; `--wait` then waits for them.
        json: True if the command has `--json`; False for servers, which return nothing.
        subcommands: returns the operations of a command group, by name.
    """

    name: str
    function: Callable[..., Any]
    writes: bool = False
    access: Literal["anyone", "guest", "host"] = "anyone"
    action: str = ""
    may_not: Callable[[Actor, str], str] = lambda *_: ""
    path: str = ""
    tool: str = ""
    command: bool = True
    status: int = 200
    database: Literal["ready", "optional", "none"] = "ready"
    as_text: Callable[[Any], str] | None = None
    exit_code: Callable[[Any], int] = lambda _: 0
    question: Callable[[Sequence[Job]], str] | None = None
    adds_runs: bool = False
    json: bool = True
    buttons: tuple[Button, ...] = ()
    subcommands: "Callable[[], Mapping[str, Operation]] | None" = None

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the function by name, without `actor`."""
        parameters = inspect.signature(self.function, eval_str=True).parameters
        return {name: parameter for name, parameter in parameters.items() if name != "actor"}

    @cached_property
    def signature(self) -> inspect.Signature:
        """Signature of `call`, which takes one `run` where the function takes `runs`."""
        keyword = inspect.Parameter.KEYWORD_ONLY
        run = inspect.Parameter("run", keyword, annotation=Run)
        parameters = (
            run if name == "runs" else parameter for name, parameter in self.parameters.items()
        )
        record = inspect.signature(self.function, eval_str=True).return_annotation
        return inspect.Signature(
            [parameter.replace(kind=keyword) for parameter in parameters],
            return_annotation=Record if "runs" in self.parameters else record,
        )

    @cached_property
    def description(self) -> str:
        """Docstring of the function, with a note if the operation is for hosts only."""
        text = inspect.getdoc(self.function) or ""
        return f"{text} Hosts only." if self.access == "host" else text

    def call(self, actor: Actor, **values: Any) -> Any:
        """Execute the operation for an HTTP request or a tool, with the parameters of `signature`.
        Raises `SlimscopeError` if it is forbidden or impossible."""
        if "runs" not in self.parameters:
            return self.call_all(actor, **values)
        job = queries.job(values.pop("run"))
        self.call_all(actor, runs=[job.run], **values)
        return summary(queries.job(job.id))

    def call_all(self, actor: Actor, **values: Any) -> Any:
        """Execute the operation, given the parameters of its function."""
        if self.access == "host":
            action = self.action or f"use {self.name}"
            permissions.require(actor, action, permissions.may_not_change(actor))
        wants_actor = "actor" in inspect.signature(self.function).parameters
        return self.function(**values, **({"actor": actor} if wants_actor else {}))

    def forbidden(self, actor: Actor, jobs: Iterable[Job]) -> str:
        """Return the reason why an actor may not change the runs this way; "" if allowed."""
        if self.access == "host":
            return permissions.may_not_change(actor)
        return next(filter(None, (self.may_not(actor, job.owner) for job in jobs)), "")


OPERATIONS = Registry[Operation](Declarations("operation", "jobs.operations", "jobs.cli"))


def operation(
    name: str, *, path: str | None = None, tool: str | None = None, **attributes: Any
) -> Callable[[Function], Function]:
    """Register a function as an operation; `attributes` are those of `Operation`.

    The default path is `/NAME`, or `/runs/{run}/NAME` for a function with the parameter `run` or
    `runs`. Operations that write are for hosts only by default.
    """

    def build(function: Callable[..., Any]) -> Operation:
        parameters = inspect.signature(function).parameters
        default_path = f"/runs/{{run}}/{name}" if {"run", "runs"} & {*parameters} else f"/{name}"
        values = {
            "access": "host" if attributes.get("writes") else "anyone",
            "path": default_path if path is None else path,
            "tool": name.replace("-", "_") if tool is None else tool,
        } | attributes
        return Operation(name=name, function=function, **values)

    return OPERATIONS.registering(name, build)
