"""What people do with a conversation: go on with it, stop it, ask again, vote."""

from __future__ import annotations

from collections.abc import Sequence

from backend.errors import ConflictError, NotFoundError
from backend.queue import service
from backend.queue.actor import Actor
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from jobs.fields.saved_models import has_saved
from jobs.generate import arena
from jobs.generate import config as generate
from jobs.submit import submit
from ui.pages.playground import board
from ui.runs.results import find_job, kind_of

SEEDS = 2**31


def generate_run(run: str) -> Job | None:
    job = find_job(run)
    return job if job and job.kind == generate.NAME and not job.damaged else None


def follows(here: Job | None, sides: str) -> str:
    """The run a new prompt follows, of the one that is shown: with other models a new conversation
    begins, and after one that failed the one before it goes on.

    Raises:
        ConflictError: it is still being answered.
    """
    if here is None or arena.names_of(here) != [*map(str.strip, sides.split(","))]:
        return ""
    if here.state in ACTIVE:
        why = f"{here.run} is still being answered."
        raise ConflictError("The prompt was not sent.", why, "Wait for its end, or stop it.")
    done = here.state == State.SUCCEEDED
    return here.run if done else str(here.config.get("follows", ""))


def absent(names: Sequence[str]) -> list[str]:
    """Those of these models that are runs without weights on this machine."""
    found = {name: job for name in names if (job := find_job(name))}
    kinds = {name: kind_of(job) for name, job in found.items()}
    return [n for n, kind in kinds.items() if kind and not has_saved(found[n], kind.saves)]


def carry_out(action: str, run: str, actor: Actor) -> str:
    job = generate_run(run)
    if job is None:
        raise NotFoundError("Nothing was done.", "There are no such answers.")
    if action == "stop":
        service.cancel(job.run, actor)
    elif action == "again":
        if board.would_repeat(job):
            raise ConflictError(
                "The answers would be the same.", "At temperature 0 the seed changes nothing.",
                "Raise the temperature under Settings and send the prompt again.",
            )  # fmt: skip
        seed = (int(job.config.get("seed", 0)) + 1) % SEEDS
        return submit(generate.NAME, {**job.config, "seed": seed}, actor).run
    elif (choice := action.removeprefix(board.VOTE)) in map(str, board.choices(job)):
        arena.vote(job, int(choice), actor)
    else:
        raise NotFoundError("Nothing was done.", f"There is nothing called {action[:40]!r}.")
    return ""
