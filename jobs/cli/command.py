"""Commands made from operations: arguments for what is required, options for the rest, --json."""

import inspect
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup
from typer.models import ParameterInfo

from backend.store import queries
from jobs.cli.console import me, write
from jobs.operations.registry import OPERATIONS, Operation
from jobs.operations.runs import sweep_of
from jobs.summary import summary
from jobs.wording import as_text

TERMINAL = sys.stdout.isatty()
MARKUP: Literal["rich"] | None = "rich" if TERMINAL else None  # which cannot but wrap
CONTEXT = {} if TERMINAL else {"terminal_width": 100_000}
KEYWORD = inspect.Parameter.KEYWORD_ONLY


class Commands(Mapping[str, Any]):
    """Name -> command, made of its operation when it is asked for. `names`: of all commands, in the
    order of the help. `operation`: the operation of a name."""

    def __init__(
        self, names: Callable[[], Iterable[str]], operation: Callable[[str], Operation]
    ) -> None:
        self._names, self._operation = names, operation

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        return command_for(self._operation(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len([*self._names()])


def command_for(operation: Operation) -> Any:
    """The command that carries out an operation, or the group of those below it."""
    if below := operation.below:
        commands: Any = Commands(below, lambda name: below()[name])
        return TyperGroup(
            name=operation.name,
            help=operation.about,
            no_args_is_help=True,
            commands=commands,
            rich_markup_mode=MARKUP,
            context_settings=CONTEXT,
        )

    def command(**values: Any) -> None:
        as_json, wait = values.pop("as_json", False), operation.waits and values.pop("wait")
        if "runs" in operation.parameters and values.pop("sweep", False):
            values["runs"] = [job.run for run in values["runs"] for job in sweep_of(run)]
        if operation.question and not values.pop("yes"):
            jobs = [queries.job(run) for run in values.get("runs") or [values["run"]]]
            typer.confirm(operation.question(jobs), abort=True, err=True)
        carry_out(operation, values, as_json, wait)

    shown = [_parameter(each) for each in operation.parameters.values()]
    command.__signature__ = inspect.Signature([*shown, *_options(operation)])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=MARKUP, context_settings=CONTEXT)
    app.command(operation.name, help=inspect.getdoc(operation.function))(command)
    return typer.main.get_command(app)


def carry_out(operation: Operation, values: dict[str, Any], as_json: bool, wait: bool) -> None:
    """Does it, prints the answer, and leaves with its exit code."""
    with redirect_stdout(io.StringIO()) if as_json else nullcontext():
        answer = operation.call_all(me(), **values)
        if wait:
            runs = [run["id"] for run in (answer if isinstance(answer, list) else [answer])]
            operation = OPERATIONS["wait"]
            answer = operation.call_all(me(), runs=runs)
    if as_json:
        single = len(values.get("runs", ())) == 1 and isinstance(answer, list)
        shown = summary(queries.job(values["runs"][0])) if single else answer
        print(json.dumps(shown, indent=1, default=vars))
    elif text := (operation.said or as_text)(answer):
        write(text)
    raise typer.Exit(operation.exit_code(answer))


def escaped(text: str) -> str:
    """Help with brackets that are no markup."""
    return text.replace("[", "\\[") if MARKUP else text


def _options(operation: Operation) -> Iterator[inspect.Parameter]:
    """What all commands of its sort have."""
    if "runs" in operation.parameters and operation.name != "wait":
        yield _flag("sweep", "--sweep", help="All runs of the sweep it belongs to.")
    if operation.question:
        yield _flag("yes", "--yes", "-y", help="Do not ask.")
    if operation.waits:
        yield _flag("wait", "--wait", help="Follow it to its end.")
    if operation.json:
        yield _flag("as_json", "--json", help="Print JSON.")


def _flag(name: str, *flags: str, **about: str) -> inspect.Parameter:
    option = Annotated[bool, typer.Option(*flags, **about)]
    return inspect.Parameter(name, KEYWORD, default=False, annotation=option)


def _parameter(each: inspect.Parameter) -> inspect.Parameter:
    """A parameter as typer reads it; one that has typer's own annotation stays."""
    annotated = get_origin(each.annotation) is Annotated
    kind, *notes = get_args(each.annotation) if annotated else [each.annotation]
    if any(isinstance(note, ParameterInfo) for note in notes):
        return each.replace(kind=KEYWORD)
    info = next((note for note in notes if isinstance(note, FieldInfo)), FieldInfo())
    about: dict[str, Any] = {"help": escaped(info.description or "")}
    for limit in info.metadata:
        about |= {"min": limit.ge} if hasattr(limit, "ge") else {}
        about |= {"max": limit.le} if hasattr(limit, "le") else {}
    if isinstance(plain := get_origin(kind) or kind, type) and issubclass(plain, Mapping):
        about["parser"] = json.loads
    if each.default is each.empty:
        option = typer.Argument(**about)
    else:
        option = typer.Option(*([f"--{each.name}"] if kind is bool else ()), **about)
    return each.replace(kind=KEYWORD, annotation=Annotated[kind, option])
