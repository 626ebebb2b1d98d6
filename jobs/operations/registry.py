"""The table of operations: everything that can be asked of the queue or of this machine. The
command line, the HTTP API with its documentation, the MCP tools and the buttons are made from it.

    @operation("pin", writes=True)
    def pin(run: Run, actor: Actor, note: str = "") -> Record:
        \"\"\"Pin a run.\"\"\"

is `slimscope pin RUN --note TEXT`, `POST /runs/{run}/pin?note=` and the tool `pin`, for hosts.
Whoever it is for, the services an operation calls enforce their own rules.
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
    """How pages offer an operation. It acts on those of the selected runs that fit.

    Attributes:
        fits: whether a run is one it is for.
        question: to be confirmed first, about the runs that fit.
        prompt, takes, initial: the text it asks for, the parameter that takes it, and what it
            holds at first. "{runs}" in the prompt names the runs.
        values: of other parameters.
        group: "queue" stands with the state of a run, "order" with what keeps the list in order.
        several: whether it is offered for more than one run.
    """

    name: str
    text: str
    fits: Callable[[Job], bool]
    question: Callable[[Sequence[Job]], str] = lambda _: ""
    prompt: str = ""
    takes: str = ""
    initial: Callable[[Sequence[Job]], str] = lambda _: ""
    values: Mapping[str, Any] = field(default_factory=dict)
    group: Literal["queue", "order", "disk"] = "order"
    several: bool = True


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One entry of the table.

    Attributes:
        function: does it; takes `actor` where it matters who asks. One with the parameter `runs`
            works on all of them or none, and answers with the records of those it changed.
        writes: whether it changes anything: POST rather than GET.
        who: "guest": the services decide what a guest may; "host": guests are refused here, too.
        action: continues "guest may not ...".
        may_not: why an actor may not do it to a run of that owner; "" if allowed. For buttons.
        path, tool: of HTTP and MCP; empty where it is not served there.
        command: whether it is a command of the command line.
        status: of HTTP, when it succeeds.
        database: "ready": is created and migrated first; "optional": works without one.
        said: the answer as text for people; None: as a table.
        exit_code: of the command, by the answer.
        question: what the command line asks before it is done, unless told --yes.
        waits: whether it adds runs, which the command line can follow to their ends.
        json: False of a server, which never answers.
        below: of a group of commands, the operations in it by name.
    """

    name: str
    function: Callable[..., Any]
    writes: bool = False
    who: Literal["anyone", "guest", "host"] = "anyone"
    action: str = ""
    may_not: Callable[[Actor, str], str] = lambda *_: ""
    path: str = ""
    tool: str = ""
    command: bool = True
    status: int = 200
    database: Literal["ready", "optional", "none"] = "ready"
    said: Callable[[Any], str] | None = None
    exit_code: Callable[[Any], int] = lambda _: 0
    question: Callable[[Sequence[Job]], str] | None = None
    waits: bool = False
    json: bool = True
    buttons: tuple[Button, ...] = ()
    below: "Callable[[], Mapping[str, Operation]] | None" = None

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its parameters by name, without the actor."""
        found = inspect.signature(self.function, eval_str=True).parameters
        return {name: each for name, each in found.items() if name != "actor"}

    @cached_property
    def signature(self) -> inspect.Signature:
        """As programs call it: with one `run` in place of `runs`."""
        keyword = inspect.Parameter.KEYWORD_ONLY
        one = inspect.Parameter("run", keyword, annotation=Run)
        found = (one if name == "runs" else each for name, each in self.parameters.items())
        answer = inspect.signature(self.function, eval_str=True).return_annotation
        return inspect.Signature(
            [each.replace(kind=keyword) for each in found],
            return_annotation=Record if "runs" in self.parameters else answer,
        )

    @cached_property
    def about(self) -> str:
        """What it does, and for whom."""
        text = inspect.getdoc(self.function) or ""
        return f"{text} For hosts." if self.who == "host" else text

    def call(self, actor: Actor, **values: Any) -> Any:
        """Do it, for a program: with the parameters of `signature`. Raises SlimscopeError: it is
        not allowed, or not possible."""
        if "runs" not in self.parameters:
            return self.call_all(actor, **values)
        job = queries.job(values.pop("run"))
        self.call_all(actor, runs=[job.run], **values)
        return summary(queries.job(job.id))

    def call_all(self, actor: Actor, **values: Any) -> Any:
        """Do it, with the parameters of the function."""
        if self.who == "host":
            action = self.action or f"use {self.name}"
            permissions.require(actor, action, permissions.may_not_change(actor))
        wants_actor = "actor" in inspect.signature(self.function).parameters
        return self.function(**values, **({"actor": actor} if wants_actor else {}))

    def forbidden(self, actor: Actor, jobs: Iterable[Job]) -> str:
        """Why an actor may not do it to these runs; "" if allowed."""
        if self.who == "host":
            return permissions.may_not_change(actor)
        return next(filter(None, (self.may_not(actor, job.owner) for job in jobs)), "")


OPERATIONS = Registry[Operation](Declarations("operation", "jobs.operations", "jobs.cli"))


def operation(
    name: str, *, path: str | None = None, tool: str | None = None, **facts: Any
) -> Callable[[Function], Function]:
    """Registers a function as an operation; see `Operation`. Without a path it is served under its
    name, below its run if it is about one. What writes is for hosts, unless told otherwise."""

    def made(function: Callable[..., Any]) -> Operation:
        named = inspect.signature(function).parameters
        default = f"/runs/{{run}}/{name}" if {"run", "runs"} & {*named} else f"/{name}"
        given = {
            "who": "host" if facts.get("writes") else "anyone",
            "path": default if path is None else path,
            "tool": name.replace("-", "_") if tool is None else tool,
        } | facts
        return Operation(name=name, function=function, **given)

    return OPERATIONS.registering(name, made)
