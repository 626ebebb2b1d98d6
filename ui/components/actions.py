"""What can be done to a run: the buttons, and doing it. The rules stand in the queue's service."""

from __future__ import annotations

from backend.errors import NotFound
from backend.queue import service, supervisor
from backend.queue.service import Actor
from backend.store import queries
from backend.store.states import LIVE, RESUMABLE, State
from backend.store.tables import Job
from jobs import submit
from ui.components.cards import run_link
from ui.format import esc, href

GUEST = "Guests may look, not change. Ask the person who started Slimscope."


def deeds(job: Job) -> list[tuple[str, str, str]]:
    """What fits the job's state: (deed, words on the button, question before it is done)."""
    if job.state == State.QUEUED:
        return [("cancel", "Cancel run", f"Take {job.run} out of the queue?")]
    if job.state in LIVE and job.desired == "run":
        kept = "It stops at the next safe point and keeps what is finished."
        return [("cancel", "Cancel run", f"Cancel {job.run}? {kept}")]
    if job.state in LIVE and job.desired == "stop":
        lost = "Work since its last checkpoint is lost."
        return [("kill", "Kill now", f"Kill {job.run} now? {lost}")]
    if job.state in LIVE:
        return []
    again = [("retry", "Retry", "")]
    return [("resume", "Resume", ""), *again] if job.state in RESUMABLE else again


def buttons(job: Job, actor: Actor) -> str:
    """HTML: the buttons that fit; for guests they are there, but cannot be pressed."""
    off = f' disabled title="{GUEST}"' if actor.role != "host" else ""
    return "".join(
        f'<button type="button" class="small" data-testid="{deed}-{esc(job.run)}" '
        f'data-do="{deed}" data-run="{esc(job.run)}" data-ask="{esc(question)}"{off}>'
        f"{words}</button>"
        for deed, words, question in deeds(job)
    )


def clone_link(job: Job) -> str:
    """HTML: opens the form with this run's config."""
    where = href("launch", kind=job.kind, **{"from": job.run})
    return f'<a class="button small" href="{where}">Clone to a new run</a>'


def weights_link(job: Job) -> str:
    """HTML: opens the weights page on this run."""
    return f'<a class="button small" href="{href("weights", run=job.run)}">See its weights</a>'


def perform(deed: str, run: str, actor: Actor) -> str:
    """Does it.

    Returns:
        HTML: what was done.

    Raises:
        SlimscopeError: it may not, or cannot, be done.
    """
    if deed == "retry":
        job = submit.again(run, actor)
        done = f"{run_link(job)} is queued; it has the same config."
    elif deed == "resume":
        job = service.resume(run, actor)
        done = f"{esc(job.run)} is queued again and goes on from its last checkpoint."
    elif deed in ("cancel", "kill"):
        done = _end(deed, run, actor)
    else:
        raise NotFound(f"There is nothing called {deed[:20]!r} to do.")
    supervisor.ensure()
    return done


def _end(deed: str, run: str, actor: Actor) -> str:
    """A second `cancel` from a page that is behind must not become a kill."""
    service.require_host(actor, "cancel a run")
    if deed == "cancel" and queries.job(run).desired != "run":
        return f"{esc(run)} was asked to stop before."
    if service.cancel(run, actor) == State.CANCELLED:
        return f"{esc(run)} is cancelled."
    return f"{esc(run)} was asked to {esc(queries.job(run).desired)}."
