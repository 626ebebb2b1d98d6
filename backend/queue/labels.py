"""Annotations that help users to find runs: names, tags, notes, and saved views of the run list."""

import re
from collections.abc import Iterable, Sequence

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
    """Parse tags separated by spaces or commas.

    Raises:
        ConfigError: the text is empty, or a tag is invalid.
    """
    tags = [*dict.fromkeys(re.split(r"[\s,]+", text.strip()))]
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise ConfigError(
                f"{tag[:50]!r} is not a valid tag.",
                "A tag has at most 40 characters: letters, digits or . + - / _",
                "Example: paper wikitext-2",
            )
    return tags


def edit(
    runs: Iterable[str | int],
    actor: Actor,
    *,
    name: str | None = None,
    text: str | None = None,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> None:
    """Change the annotations of runs, all or none.

    Args:
        name: new name; empty removes the name, None keeps it.
        text: new note; empty removes the note, None keeps it.
        add: tags to add.
        remove: tags to remove.

    Raises:
        ConflictError: a run is an example, which is read-only.
        ConfigError: a run would have more than `MOST_TAGS` tags.
    """
    require_host(actor, "edit a run")
    jobs = [queries.job(run) for run in runs]
    for job in jobs:
        if job.id < 0:
            raise ConflictError(
                f"{job.run} was not changed.",
                "Examples are read-only.",
                "Clone it to a run of your own.",
            )
    with writing() as session:
        for job in locked(session, Job, [job.id for job in jobs]):
            if name is not None:
                job.name = one_line(name)[:RUN_NAME_LETTERS]
                note(session, job.id, "renamed", actor.name)
            if text is not None:
                job.note = printable(text).strip()[:NOTE_LETTERS]
                note(session, job.id, "note written", actor.name)
            _set_tags(session, job, [*dict.fromkeys([*job.tags, *add])], actor, "tagged", add)
            remaining = [tag for tag in job.tags if tag not in remove]
            _set_tags(session, job, remaining, actor, "untagged", remove)


def _set_tags(
    session: Session, job: Job, tags: list[str], actor: Actor, event: str, changed: Sequence[str]
) -> None:
    if len(tags) > MOST_TAGS:
        raise ConfigError(f"{job.run} would have {len(tags)} tags.", f"The maximum is {MOST_TAGS}.")
    if tags != job.tags:
        job.tags = tags
        note(session, job.id, event, actor.name, " ".join(changed))


def save_view(name: str, query: str, actor: Actor) -> None:
    """Save a view of the run list as a URL query; a view with the same name is replaced."""
    require_host(actor, "save a view")
    name, query = one_line(name), one_line(query)
    if not 0 < len(name) <= NAME_LETTERS:
        raise ConfigError("The view was not saved.", f"A name has 1 to {NAME_LETTERS} characters.")
    with writing() as session:
        view = {"name": name, "query": query, "owner": actor.name, "saved_at": now_ms()}
        views = Table.metadata.tables[SavedView.__tablename__]
        dialect_of(session).upsert(session.connection(), views, [view])


def delete_view(name: str, actor: Actor) -> None:
    """Delete a saved view if it exists."""
    require_host(actor, "delete a view")
    with writing() as session:
        session.execute(delete(SavedView).where(SavedView.name == name))
