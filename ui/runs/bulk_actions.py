"""What can be done to several runs at once: the bar above the table, and doing it."""

from __future__ import annotations

from collections.abc import Sequence

from backend.errors import ConfigError, NotFoundError
from backend.queue import labels, roles
from backend.queue.roles import Actor
from backend.store.states import LIVE, RESUMABLE, State
from backend.store.tables import Job
from jobs import operations
from ui.format import count, esc, href
from ui.runs.view import MOST_PINS, TableResult
from ui.widgets.html import attribute, off

FEWEST, MOST = 2, 6  # runs side by side


def bar(found: TableResult, who: Actor) -> str:
    """HTML: how many runs match, and what can be done to the picked ones. Its height is the same
    whether any are."""
    told = "".join(f'<p class="warn">⚠ {esc(text)}</p>' for text in found.filter.problems)
    of = f"{count(len(found.rows))} of {count(found.total)}"
    if not found.picked:
        body = f'<span>{of} runs</span><span class="quiet">Pick some to compare, pin or tag.</span>'
    else:
        picked = f"<span>{of} runs, {count(len(found.picked))} picked</span>"
        body = picked + _deeds(found, who)
    return f'{told}<div class="bulk" role="toolbar" aria-label="Picked runs">{body}</div>'


def _deeds(found: TableResult, who: Actor) -> str:
    jobs = [row.job for row in found.picked]
    tags = sorted({tag for job in jobs for tag in job.tags or ()})
    one = jobs[0] if len(jobs) == 1 else None
    return "".join(
        [
            compare_link(found),
            _view("Set as baseline", {"base": one.run, "pick": ""}) if one else "",
            _pin(found),
            _act("tag", "Tag", who, prompt=f"Tag {_these(jobs)} with:"),
            _act("untag", "Untag", who, prompt=f"Take off {_these(jobs)}:", words=" ".join(tags))
            if tags
            else "",
            _act("note", "Note", who, prompt=f"Note on {one.run}:", words=one.note) if one else "",
            _cancel(jobs, who),
            _resume(jobs, who),
            _view("Clear", {"pick": ""}),
        ]
    )


def compare_link(found: TableResult) -> str:
    """HTML: leads to the comparison of the picked runs and the baseline; says when it cannot."""
    runs = [row.job.run for row in found.picked]
    base = found.base.job.run if found.base else ""
    if base and base not in runs:
        runs.insert(0, base)
    if not FEWEST <= len(runs) <= MOST:
        why = f"{FEWEST} to {MOST} runs can be compared"
        return f'<button type="button" class="small" disabled title="{why}">Compare</button>'
    where = href("compare", ids=",".join(runs), base=base)
    return f'<a class="button small" data-testid="compare" href="{where}">Compare {len(runs)}</a>'


def _pin(found: TableResult) -> str:
    pins = dict.fromkeys([*found.look.pins, *(row.job.run for row in found.picked)])
    if len(pins) > MOST_PINS:
        why = f"{MOST_PINS} runs can be pinned"
        return f'<button type="button" class="small" disabled title="{why}">Pin</button>'
    return _view("Pin", {"pins": ",".join(pins), "pick": ""})


def _cancel(jobs: Sequence[Job], who: Actor) -> str:
    active = [job for job in jobs if _cancellable(job)]
    if not active:
        return ""
    question = f"Cancel {_these(active)}? What is finished is kept."
    reason = next(filter(None, (roles.may_not_cancel(who, job.owner) for job in active)), "")
    return _act("cancel", "Cancel", who, ask=question, reason=reason)


def _resume(jobs: Sequence[Job], who: Actor) -> str:
    ended = [job for job in jobs if job.state in RESUMABLE]
    return _act("resume", "Resume", who, ask=f"Resume {_these(ended)}?") if ended else ""


def _cancellable(job: Job) -> bool:
    """A second cancel would be a kill, which is asked for run by run."""
    return job.state == State.QUEUED or (job.state in LIVE and job.desired == "run")


def _these(jobs: Sequence[Job]) -> str:
    return jobs[0].run if len(jobs) == 1 else f"{len(jobs)} runs"


def _view(title: str, view: dict[str, str]) -> str:
    return (
        f'<button type="button" class="small" data-view="{attribute(view)}">{esc(title)}</button>'
    )


def _act(
    deed: str,
    title: str,
    who: Actor,
    *,
    ask: str = "",
    prompt: str = "",
    words: str = "",
    reason: str | None = None,
) -> str:
    """A button that does something; those a guest may not press are there, with the reason."""
    if reason is None:
        reason = roles.may_not_change(who)
    asked = f' data-ask="{esc(ask)}"' if ask else ""
    asked += f' data-prompt="{esc(prompt)}" data-words="{esc(words)}"' if prompt else ""
    return (
        f'<button type="button" class="small" data-testid="bulk-{deed}" data-do="{deed}"'
        f"{asked}{off(reason)}>{title}</button>"
    )


def perform(deed: str, found: TableResult, text: str, who: Actor) -> str:
    """Does it to the picked runs.

    Returns:
        HTML: what was done.

    Raises:
        SlimscopeError: it may not, or cannot, be done.
    """
    jobs = [row.job for row in found.picked]
    if not jobs:
        raise ConfigError("Nothing was done.", "No run is picked.")
    runs = [job.run for job in jobs]
    match deed:
        case "tag":
            labels.tag(runs, tags := labels.tags_in(text), who)
            return f"{_these(jobs)} tagged {esc(', '.join(tags))}."
        case "untag":
            labels.untag(runs, tags := labels.tags_in(text), who)
            return f"{esc(', '.join(tags))} taken off {_these(jobs)}."
        case "note":
            labels.annotate(runs[0], text, who)
            return f"Note on {runs[0]} written."
        case "cancel":
            active = [job for job in jobs if _cancellable(job)]
            operations.cancel_runs([job.run for job in active], who)
            return f"{_these(active)} asked to stop."
        case "resume":
            again = operations.resume_runs(runs, who)
            return f"{count(len(again))} queued again; each goes on from its last checkpoint."
    raise NotFoundError(f"There is nothing called {deed[:20]!r} to do.")
