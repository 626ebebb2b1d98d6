"""What can be done to a run: the buttons, and doing it. The rules stand in the queue's service."""

from __future__ import annotations

from backend.errors import NotFoundError
from backend.queue import roles
from backend.queue.roles import Actor
from backend.store import queries
from backend.store.states import ACTIVE, LIVE, RESUMABLE, State
from backend.store.tables import Job
from jobs import operations
from jobs.dlqat import config as dlqat
from jobs.fields import drafters
from jobs.generate import config as generate
from jobs.speed import config as speed
from ui.format import esc, href, runs
from ui.runs.html import run_link
from ui.widgets.html import off


def actions(job: Job, place: int | None = None) -> list[tuple[str, str, str]]:
    """What fits the job's state: (deed, words on the button, question before it is done).

    Args:
        place: of the job in the queue, 1 for the next to start; None leaves out what moves it.
    """
    if job.state == State.QUEUED:
        later = [("next", "Run next", "")] if place and place > 1 else []
        return [*later, ("cancel", "Cancel run", f"Take {job.run} out of the queue?")]
    if job.state in LIVE and job.desired == "run":
        kept = "It stops at the next safe point and keeps what is finished."
        return [("cancel", "Cancel run", f"Cancel {job.run}? {kept}")]
    if job.state in LIVE and job.desired == "stop":
        lost = "Work since its last checkpoint is lost."
        return [("kill", "Kill now", f"Kill {job.run} now? {lost}")]
    if job.state in LIVE:
        return []
    if job.state in RESUMABLE:
        return [("resume", "Resume", ""), ("retry", "Retry", "")]
    return [("retry", "Replay", "")]


def buttons(job: Job, actor: Actor, place: int | None = None) -> str:
    """HTML: the buttons that fit; those a guest may not press are there, with the reason."""
    return "".join(
        f'<button type="button" class="small" data-testid="{deed}-{esc(job.run)}" '
        f'data-do="{deed}" data-run="{esc(job.run)}" data-ask="{esc(question)}"'
        f"{_off(deed, job, actor)}>{words}</button>"
        for deed, words, question in actions(job, place)
    )


def _off(deed: str, job: Job, actor: Actor) -> str:
    """HTML attributes of a button that would be refused."""
    if deed == "retry":
        reason = roles.may_not_add(actor)
    elif deed in ("resume", "next"):
        reason = roles.may_not_change(actor)
    else:
        reason = roles.may_not_cancel(actor, job.owner)
    return off(reason)


def clone_link(job: Job) -> str:
    """HTML: opens the form with this run's config."""
    where = href("launch", kind=job.kind, **{"from": job.run})
    return f'<a class="button small" href="{where}">Clone to a new run</a>'


def sweep_link(job: Job) -> str:
    """HTML: opens the sweep the run is part of; nothing for a run that was queued alone."""
    if job.sweep is None:
        return ""
    return f'<a class="button small" href="{href("sweep", id=job.run)}">See its sweep</a>'


def next_links(job: Job) -> str:
    """HTML: what one does next with a run: look at what it stored, decode with what it left."""
    ended, base = job.state == State.SUCCEEDED, job.config.get("model", "")
    mark = queries.weights_mark(job.run)
    try_it = href("generate", sides=job.run)
    offers = [
        (
            ended and job.kind == drafters.DRAFTER_KIND,
            href("launch", kind=speed.NAME, model=base, drafters=job.run),
            "Measure its speed",
        ),
        (ended and _decodes(job), try_it, "Generate with it"),
        (job.kind == speed.NAME, href("speed", run=job.run), "See its charts"),
        (job.kind == generate.NAME, href("generate", run=job.run), "See its answers"),
        (job.kind == dlqat.NAME, href("quant", run=job.run), "See its groups"),
        (mark is not None and mark[1] > 0, href("weights", run=job.run), "See its weights"),
    ]
    return "".join(
        f'<a class="button small" href="{where}">{words}</a>'
        for fits, where, words in offers
        if fits
    )


def _decodes(job: Job) -> bool:
    """Whether the run left a model or a drafter."""
    return any(
        found.kind in ("model", drafters.DRAFTER_FOLDER) for found in queries.artifacts(job.run)
    )


def run_action(deed: str, run: str, actor: Actor) -> str:
    """Does it.

    Returns:
        HTML: what was done.

    Raises:
        SlimscopeError: it may not, or cannot, be done.
    """
    if deed == "retry":
        job = queries.job(operations.replay_run(run, actor)["id"])
        done = f"{run_link(job)} is queued; it repeats {esc(run)} and is compared with it."
    elif deed == "resume":
        resumed = operations.resume_run(run, actor)
        done = f"{esc(resumed['id'])} is queued again and goes on from its last checkpoint."
    elif deed == "next":
        done = f"{esc(operations.run_next(run, actor)['id'])} is the next to start."
    elif deed in ("cancel", "kill"):
        done = _end(deed, run, actor)
    elif deed == "cancel-sweep":  # whoever was asked to stop before is not killed by this
        going = [j.run for j in queries.sweep(run) if j.state in ACTIVE and j.desired == "run"]
        done = f"Asked to stop: {runs(len(operations.cancel_runs(going, actor)))}."
    elif deed == "resume-sweep":
        whole = [job.run for job in queries.sweep(run)]
        done = f"Queued again: {runs(len(operations.resume_runs(whole, actor)))}."
    else:
        raise NotFoundError(f"There is nothing called {deed[:20]!r} to do.")
    return done


def _end(deed: str, run: str, actor: Actor) -> str:
    """A second `cancel` from a page that is behind must not become a kill."""
    if deed == "cancel" and queries.job(run).desired != "run":
        return f"{esc(run)} was asked to stop before."
    ended = operations.cancel_run(run, actor)
    if ended["state"] == State.CANCELLED:
        return f"{esc(run)} is cancelled."
    return f"{esc(run)} was asked to {esc(ended['desired'])}."
