"""What can be done to the selected runs: operations, and changes of the view."""

from backend.queue.actor import Actor
from ui.format import href
from ui.runs.actions.action import Action, offered
from ui.runs.view import MAX_PINS, TableResult

MIN_COMPARED, MAX_COMPARED = 2, 6  # runs side by side


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
