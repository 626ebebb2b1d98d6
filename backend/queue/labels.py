"""User annotations, which only help to find runs: tags, notes, and saved views of the run list."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import delete
from sqlalchemy.orm import Session

from backend.errors import ConfigError, ConflictError
from backend.printable import one_line, printable
from backend.queue.actor import Actor
from backend.queue.lifecycle import note
from backend.queue.permissions import require_host
from backend.store import queries
from backend.store.dialects import dialect_of
from backend.store.session import locked, now_ms, writing
from backend.store.tables import Job, SavedView, Table

TAG = re.compile(r"[\w.+\-/]{1,40}")
MOST_TAGS = 20
NOTE_LETTERS = 2000
NAME_LETTERS = 60
RUN_NAME_LETTERS = 120


def tags_in(text: str) -> list[str]:
    """Parse tags separated by spaces or commas; `ConfigError` for none, or an invalid one."""
    tags = [*dict.fromkeys(re.split(r"[\s,]+", text.strip()))]
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise ConfigError(
                f"{tag[:50]!r} is not a valid tag.",
                "A tag has at most 40 characters: letters, digits or . + - / _",
                "Example: paper wikitext-2",
            )
    return tags


def tag(runs: Iterable[str | int], tags: Sequence[str], actor: Actor) -> None:
    """Add tags to runs; `ConfigError` if one would have more than `MOST_TAGS`."""
    _retag(runs, lambda old: [*dict.fromkeys([*old, *tags])], actor, "tagged", tags)


def untag(runs: Iterable[str | int], tags: Sequence[str], actor: Actor) -> None:
    """Remove tags from runs; runs without them are not changed."""
    _retag(runs, lambda old: [t for t in old if t not in tags], actor, "untagged", tags)


def _retag(
    runs: Iterable[str | int],
    change: Callable[[Sequence[str]], list[str]],
    actor: Actor,
    kind: str,
    named: Sequence[str],
) -> None:
    with _changing(runs, actor, "tag a run") as (session, jobs):
        for job in jobs:
            tags = change(job.tags)
            if len(tags) > MOST_TAGS:
                raise ConfigError(
                    f"{job.run} would have {len(tags)} tags.", f"The maximum is {MOST_TAGS}."
                )
            if tags != job.tags:
                job.tags = tags
                note(session, job.id, kind, actor.name, " ".join(named))


def rename(run: str | int, name: str, actor: Actor) -> None:
    """Give a run another name; an empty one removes it."""
    with _changing([run], actor, "rename a run") as (session, (job,)):
        job.name = one_line(name)[:RUN_NAME_LETTERS]
        note(session, job.id, "renamed", actor.name)


def annotate(run: str | int, text: str, actor: Actor) -> None:
    """Set the note of a run; an empty text removes it."""
    with _changing([run], actor, "write a note") as (session, (job,)):
        job.note = printable(text).strip()[:NOTE_LETTERS]
        note(session, job.id, "note written", actor.name)


@contextmanager
def _changing(
    runs: Iterable[str | int], actor: Actor, action: str
) -> Iterator[tuple[Session, list[Job]]]:
    """A transaction with these runs locked; `ConflictError` for an example."""
    require_host(actor, action)
    jobs = [queries.job(run) for run in runs]
    for job in jobs:
        if job.id < 0:
            what, why = f"{job.run} was not changed.", "Examples are read-only."
            raise ConflictError(what, why, "Clone it to a run of your own.")
    with writing() as session:
        yield session, locked(session, Job, [job.id for job in jobs])


def save_view(name: str, query: str, actor: Actor) -> None:
    """Save a view of the run list, by its URL query; replaces one of that name."""
    require_host(actor, "save a view")
    name, query = one_line(name), one_line(query)
    if not 0 < len(name) <= NAME_LETTERS:
        raise ConfigError("The view was not saved.", f"A name has 1 to {NAME_LETTERS} characters.")
    with writing() as session:
        view = {"name": name, "query": query, "owner": actor.name, "saved_at": now_ms()}
        views = Table.metadata.tables[SavedView.__tablename__]
        dialect_of(session).upsert(session.connection(), views, [view])


def delete_view(name: str, actor: Actor) -> None:
    require_host(actor, "delete a view")
    with writing() as session:
        session.execute(delete(SavedView).where(SavedView.name == name))
