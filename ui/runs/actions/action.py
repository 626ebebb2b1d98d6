"""Buttons of operations, and of changes of the view: which there are for some runs, and what
pressing one does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from backend.errors import NotFoundError
from backend.queue.actor import Actor
from backend.store import queries
from backend.store.tables import Job
from jobs.operations.registry import OPERATIONS, Button, Operation
from jobs.wording import as_text, names
from ui.format import href, size
from ui.runs.view import MAX_PINS, TableResult
from ui.templates import fragments

HTML = fragments("runs/runs.html")
MIN_COMPARED, MAX_COMPARED = 2, 6  # runs side by side


@dataclass(frozen=True)
class Action:
    """A button for one run or for several."""

    name: str
    text: str
    question: str = ""  # to be confirmed first
    forbidden: str = ""  # why the user may not do it
    limit: str = ""  # why it does not fit the selected runs
    address: str = ""  # of the link it is
    view: Mapping[str, str] | None = None  # what it writes into the address
    prompt: str = ""  # the text it asks for
    initial: str = ""  # what that holds at first


@lru_cache
def _buttons() -> dict[str, tuple[Operation, Button]]:
    return {
        button.name: (operation, button)
        for operation in OPERATIONS.values()
        for button in operation.buttons
    }


def offered(jobs: Sequence[Job], user: Actor, *groups: str) -> list[Action]:
    """The buttons that fit some of these runs; those the user may not press have the reason."""
    found = []
    for operation, button in _buttons().values():
        if button.group not in groups or (len(jobs) > 1 and not button.several):
            continue
        if fitting := [job for job in jobs if button.fits(job)]:
            action = Action(
                button.name,
                button.text if len(jobs) == 1 else button.text.replace(" run", " runs"),
                button.question(fitting),
                operation.forbidden(user, fitting),
                prompt=button.prompt.format(runs=names([job.run for job in fitting])),
                initial=button.initial(fitting),
            )
            found.append(action)
    return found


def carry_out(name: str, jobs: Sequence[Job], text: str, user: Actor) -> str:
    """Does what a button says to those of the runs that fit, and says what was done.

    Raises:
        SlimscopeError: it is not allowed, or not possible.
    """
    operation, button = _buttons().get(name, (None, None))
    if not operation or not button or (len(jobs) != 1 and not button.several):
        raise NotFoundError(f"There is no action {name[:20]!r}.")
    runs = [job.run for job in jobs if button.fits(job)] or [job.run for job in jobs]
    values = {**button.values, **({button.takes: text} if button.takes else {})}
    about = {"runs": runs} if "runs" in operation.parameters else {"run": runs[0]}
    answer = operation.call_all(user, **about, **values)
    if name in MESSAGES:
        return MESSAGES[name](answer)
    return (operation.said or as_text)(answer)


def _reproduced(run: Mapping[str, Any]) -> str:
    message: str = HTML.reproduction_queued(queries.job(run["id"]), queries.job(run["parent"]).run)
    return message


def _deleted(records: Sequence[Mapping[str, Any]]) -> str:
    freed = size(sum(run["disk_bytes"] for run in records))
    message: str = HTML.deleted(names([run["id"] for run in records]), freed)
    return message


MESSAGES: Mapping[str, Callable[[Any], str]] = {  # with a link
    "retry": _reproduced,
    "reproduce": _reproduced,
    "delete": _deleted,
}


def bulk_actions(table: TableResult, user: Actor) -> list[Action]:
    jobs = [row.job for row in table.selected]
    if not jobs:
        return []
    baseline = Action("base", "Set as baseline", view={"base": jobs[0].run, "pick": ""})
    return [
        _compare(table),
        *([baseline] if len(jobs) == 1 else []),
        _pin(table),
        *(each for each in offered(jobs, user, "queue", "order") if each.name != "next"),
        Action("clear", "Clear", view={"pick": ""}),
    ]


def _compare(table: TableResult) -> Action:
    """Leads to the comparison of the selected runs and the baseline."""
    runs = [row.job.run for row in table.selected]
    base = table.base.job.run if table.base else ""
    if base and base not in runs:
        runs.insert(0, base)
    if not MIN_COMPARED <= len(runs) <= MAX_COMPARED:
        return Action(
            "compare", "Compare", limit=f"{MIN_COMPARED} to {MAX_COMPARED} runs can be compared"
        )
    address = href("compare", ids=",".join(runs), base=base)
    return Action("compare", f"Compare {len(runs)}", address=address)


def _pin(table: TableResult) -> Action:
    pins = dict.fromkeys([*table.query.pins, *(row.job.run for row in table.selected)])
    if len(pins) > MAX_PINS:
        return Action("pin", "Pin", limit=f"At most {MAX_PINS} runs can be pinned")
    return Action("pin", "Pin", view={"pins": ",".join(pins), "pick": ""})
