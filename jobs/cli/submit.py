"""`slimscope submit KIND …`: one command a kind, its options drawn from the kind's config."""

import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from backend.queue import scheduling
from backend.store import queries
from jobs import sweep
from jobs.cli.command import escaped
from jobs.cli.console import me
from jobs.fields.types import options
from jobs.kind import Kind, kinds
from jobs.operations.registry import Operation, Record, operation
from jobs.operations.text import count
from jobs.summary import cost_text, summary


@operation("submit", path="", tool="",
           below=lambda: {name: _operation(kind) for name, kind in kinds().items()})  # fmt: skip
def submit() -> None:
    """Add a run to the queue."""


def _operation(kind: Kind) -> Operation:
    """Queues runs of a kind; its parameters are the fields of the kind's config."""

    def queue(**values: Any) -> Record | list[Record]:
        name, priority = values.pop("name"), values.pop("priority")
        preset = kind.preset(values.pop("preset"))
        pairs = [text.partition("=") for text in values.pop("sweep") or ()]
        swept = sweep.read(kind.name, [(field, chosen) for field, _, chosen in pairs])
        values = {**preset, **{k: v for k, v in values.items() if v is not None}}
        jobs = sweep.queue(kind.name, values, swept, me(), name=name, priority=priority)
        return summary(jobs[0]) if len(jobs) == 1 else [summary(job) for job in jobs]

    queue.__signature__ = inspect.Signature(list(_options(kind)))  # type: ignore[attr-defined]
    queue.__doc__ = kind.summary
    return Operation(name=kind.name, function=queue, waits=True, said=_queued)


def _queued(answer: Record | list[Record]) -> str:
    runs = answer if isinstance(answer, list) else [answer]
    first = queries.job(runs[0]["id"])
    place, cost = scheduling.status().position(first.id) or 1, cost_text(first)
    if len(runs) == 1:
        return f"{first.run} is queued, place {place}. {cost}".strip()
    queued = (
        f"{first.run} to {runs[-1]['id']} are queued, {count(len(runs))} from place {place} on."
    )
    return f"{queued} Each: {cost}" if cost else queued


def _options(kind: Kind) -> Iterator[inspect.Parameter]:
    """One keyword option for each field; None means: not given."""
    for name, info in kind.config.model_fields.items():
        choices = " | ".join(options(info.annotation))
        about = escaped(f"{info.title}. {info.description} {choices} (default {info.default})")
        flag = name.replace("_", "-")
        flag = f"--{flag}/--no-{flag}" if info.annotation is bool else f"--{flag}"
        simple = info.annotation if info.annotation in (bool, int, float) else str
        yield _option(name, simple | None, None, typer.Option(flag, help=about))
    recipes, presets = ", ".join(kind.recipes), ", ".join(kind.presets) or "none"
    about = f"One of: {recipes}; or: {presets}; or both, with a comma." if recipes else presets
    yield _option("preset", str, "", typer.Option(help=about))
    swept = "FIELD=VALUES: a run for each of several values, as in seed=0..2 or pattern=2:4,70%."
    yield _option("sweep", list[str] | None, None, typer.Option("--sweep", help=swept))
    yield _option("name", str, "", typer.Option(help="A name of your own for the run."))
    yield _option("priority", int, 0, typer.Option(help="Higher starts earlier."))


def _option(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
