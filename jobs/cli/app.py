"""The command line: `slimscope …`, or `python -m jobs …`. Commands are generated from operations:
required parameters become arguments, others options, and --json is added.

Exit codes: 0 success, 1 run failed or lost, 2 request rejected, 3 run cancelled, 4 reproduction
mismatch. With --json a command prints one JSON value and nothing else.
"""

import getpass
import inspect
import io
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup
from typer.models import ParameterInfo

from backend.errors import NotFoundError, SlimscopeError
from backend.printable import printable
from backend.queue.actor import Actor
from backend.queue.launcher import SUPERVISOR
from backend.settings import settings
from backend.store import queries
from backend.store.copies import database_files, has_database, has_file, repair_advice
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL, State
from backend.store.tables import Job
from jobs.operations.registry import OPERATIONS, Operation
from jobs.operations.runs import FIRST_STEP, sweep_of
from jobs.record import summary
from jobs.wording import as_text

log = logging.getLogger("slimscope")
EXPECTED = (SlimscopeError, DBAPIError, ValidationError, SettingsError, OSError)
REFUSED, FAILED, CANCELLED, DIFFERENT = 2, 1, 3, 4
POLL_S = 0.5


def current_actor() -> Actor:
    """Return the current user, who is a host, since they have a shell on this machine."""
    return Actor(getpass.getuser(), "host")


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn expected errors (rejected request, settings, database, disk) into one line and an exit
    code. Bugs still show a traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
    except EXPECTED as error:
        print(f"slimscope: {printable(in_words(error))}", file=sys.stderr)
        sys.exit(REFUSED)


def in_words(error: Exception) -> str:
    """Return an error as one line."""
    match error:
        case SlimscopeError():
            return " ".join(map(str, (error, *error.others)))
        case DBAPIError():
            why = str(error.orig or error).splitlines()[0]
            damaged = isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(
                error.orig, sqlite3.OperationalError | sqlite3.IntegrityError
            )
            advice = f" {repair_advice()}" if damaged else ""
            url = make_url(settings().url).render_as_string(hide_password=True)
            location = f"in {settings().root}" if has_file() else f"at {url}"
            return f"The database {location} cannot be used: {why}.{advice}"
        case ValidationError():  # from the settings; configs raise ConfigError
            invalid_settings = ((detail["loc"], detail["msg"]) for detail in error.errors())
            return " ".join(
                f"SLIMSCOPE_{str(next(iter(location), '')).upper()} is invalid: {reason}."
                for location, reason in invalid_settings
            )
    return str(error)


def write(text: str, end: str = "\n") -> None:
    """Print text from a run, without control characters for the terminal."""
    print(printable(text), end=end, flush=True)


def exit_of(state: str) -> int:
    """Return the exit code of a command for the final state of its run."""
    return {
        State.SUCCEEDED: 0,
        State.FAILED: FAILED,
        State.LOST: FAILED,
        State.CANCELLED: CANCELLED,
    }[State(state)]


def follow(run: str) -> Job:
    """Print the progress of a run until it ends."""
    printed = ""
    while (job := queries.job(run)).state not in TERMINAL:
        SUPERVISOR.wake()  # in case it was killed
        share = "   –" if job.share is None else f"{job.share:4.0%}"
        line = f"{job.run}  {job.state:<10} {share}  {job.stage}"
        if line != printed:
            write(line)
        printed = line
        time.sleep(POLL_S)
    return job


MARKUP: Literal["rich"] | None = "rich" if sys.stdout.isatty() else None  # rich always wraps
CONTEXT = {} if MARKUP else {"terminal_width": 100_000}
KEYWORD = inspect.Parameter.KEYWORD_ONLY


class Commands(Mapping[str, Any]):
    """Map of command names to commands, which are created on access.

    Args:
        names: returns all names in the order of the help.
        operation: returns the operation of a name.
    """

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
    """Return the command of an operation, or the group of its subcommands."""
    if subcommands := operation.subcommands:
        commands: Any = Commands(subcommands, lambda name: subcommands()[name])
        return TyperGroup(
            name=operation.name,
            help=operation.description,
            no_args_is_help=True,
            commands=commands,
            rich_markup_mode=MARKUP,
            context_settings=CONTEXT,
        )

    def command(**values: Any) -> None:
        as_json, wait = values.pop("as_json", False), operation.adds_runs and values.pop("wait")
        if "runs" in operation.parameters and values.pop("sweep", False):
            values["runs"] = [job.run for run in values["runs"] for job in sweep_of(run)]
        if operation.question and not values.pop("yes") and not values.get("undo"):
            jobs = [queries.job(run) for run in values.get("runs") or [values["run"]]]
            typer.confirm(operation.question(jobs), abort=True, err=True)
        carry_out(operation, values, as_json, wait)

    parameters = [_parameter(parameter) for parameter in operation.parameters.values()]
    command.__signature__ = inspect.Signature([*parameters, *_options(operation)])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=MARKUP, context_settings=CONTEXT)
    app.command(operation.name, help=inspect.getdoc(operation.function))(command)
    return typer.main.get_command(app)


def carry_out(operation: Operation, values: dict[str, Any], as_json: bool, wait: bool) -> None:
    """Execute the operation, print the result, and exit with its exit code."""
    with redirect_stdout(io.StringIO()) if as_json else nullcontext():
        result = operation.call_all(current_actor(), **values)
        if wait:
            runs = [run["id"] for run in (result if isinstance(result, list) else [result])]
            operation = OPERATIONS["wait"]
            result = operation.call_all(current_actor(), runs=runs)
    if as_json:
        single = len(values.get("runs", ())) == 1 and isinstance(result, list)
        output = summary(queries.job(values["runs"][0])) if single else result
        print(json.dumps(output, indent=1, default=vars))
    elif text := (operation.as_text or as_text)(result):
        write(text)
    raise typer.Exit(operation.exit_code(result))


def escaped(text: str) -> str:
    """Escape brackets in help texts, which would be read as markup."""
    return text.replace("[", "\\[") if MARKUP else text


def _options(operation: Operation) -> Iterator[inspect.Parameter]:
    """Yield the common options that apply to an operation."""
    if "runs" in operation.parameters and operation.name != "wait":
        yield _flag("sweep", "--sweep", help="Apply to all runs of the sweep.")
    if operation.question:
        yield _flag("yes", "--yes", "-y", help="Skip the confirmation.")
    if operation.adds_runs:
        yield _flag("wait", "--wait", help="Follow the run until it ends.")
    if operation.json:
        yield _flag("as_json", "--json", help="Print JSON.")


def _flag(name: str, *flags: str, **attributes: str) -> inspect.Parameter:
    option = Annotated[bool, typer.Option(*flags, **attributes)]
    return inspect.Parameter(name, KEYWORD, default=False, annotation=option)


def _parameter(parameter: inspect.Parameter) -> inspect.Parameter:
    """Convert a parameter for typer. Parameters with a typer annotation are kept."""
    annotated = get_origin(parameter.annotation) is Annotated
    value_type, *notes = get_args(parameter.annotation) if annotated else [parameter.annotation]
    if any(isinstance(note, ParameterInfo) for note in notes):
        return parameter.replace(kind=KEYWORD)
    info = next((note for note in notes if isinstance(note, FieldInfo)), FieldInfo())
    attributes: dict[str, Any] = {"help": escaped(info.description or "")}
    for limit in info.metadata:
        attributes |= {"min": limit.ge} if hasattr(limit, "ge") else {}
        attributes |= {"max": limit.le} if hasattr(limit, "le") else {}
    if isinstance(base_type := get_origin(value_type) or value_type, type) and issubclass(
        base_type, Mapping
    ):
        attributes["parser"] = json.loads
    if parameter.default is parameter.empty:
        option = typer.Argument(**attributes)
    else:
        option = typer.Option(
            *([f"--{parameter.name}"] if value_type is bool else ()), **attributes
        )
    return parameter.replace(kind=KEYWORD, annotation=Annotated[value_type, option])


# the application ----------------------------------------------------------------------------------


def restrict_access() -> None:
    """On a shared dashboard, restrict the data folder (0700), the database (0600), and all files
    created later by this process and its children to the current user."""
    active_settings = settings()
    if not active_settings.shared:
        return
    os.umask(0o077)
    active_settings.root.mkdir(parents=True, exist_ok=True)
    _restrict(active_settings.root, 0o700)
    for file in database_files():
        _restrict(file, 0o600)


def _restrict(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:  # owned by another user, or a file system without permissions
        log.warning("Other users may be able to read %s: %s", path, error.strerror)


class OperationGroup(TyperGroup):
    """Command group with one command per operation."""

    def __init__(self, **attributes: Any) -> None:
        declared = OPERATIONS.declarations
        names = [name for name, known in declared.items() if known.facts.get("command", True)]
        commands = Commands(lambda: names, OPERATIONS.__getitem__)
        super().__init__(**attributes | {"commands": commands})


app = typer.Typer(
    cls=OperationGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
    context_settings=CONTEXT,
)


@app.callback(invoke_without_command=True)
def prepare(context: typer.Context) -> None:
    """Compress causal language models and measure the effect. Without a command: open the
    dashboard."""
    name = context.invoked_subcommand or "serve"
    restrict_access()
    operation = OPERATIONS[name]
    takes_runs = {"run", "runs"} & {*operation.parameters}
    if operation.database != "none" and not has_database() and takes_runs:
        raise NotFoundError(f"There are no runs in {settings().root}.", "", FIRST_STEP)
    if operation.database == "ready" or (operation.database == "optional" and has_database()):
        upgrade()
    if not context.invoked_subcommand:
        operation.function()


def main() -> None:
    """Entry point of the console script."""
    with in_one_line():
        app()
