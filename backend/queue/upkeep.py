"""What the supervisor does beside its loop, in a thread: measure the disk space of runs that have
ended and tell the host's webhook about them, purge runs deleted a day ago; once a day check the
database, copy it, and delete expired checkpoints."""

import html
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from backend.errors import SlimscopeError
from backend.printable import readable_bytes
from backend.queue.artifacts import fetch_ended, fetch_log, remove_stored, store, work_folder
from backend.queue.lifecycle import SUPERVISOR_ACTOR, note
from backend.queue.removal import CHECKPOINTS, DAY_MS, disk_use, free_expired, purge_expired
from backend.settings import settings
from backend.store import queries
from backend.store.copies import check_integrity, copy_daily, last_check
from backend.store.session import DatabaseLock, change, now_ms, writing
from backend.store.states import LIVE, TERMINAL, State
from backend.store.tables import Job

log = logging.getLogger("slimscope.upkeep")
TURN_S = 5.0
BATCH = 100  # runs measured in one turn
NEWS_MS = 3_600_000  # a run that ended longer ago, such as an imported one, is none


@contextmanager
def upkeep(lead: DatabaseLock) -> Iterator[None]:
    """Keep the data folder in order while the body runs, and this is the supervisor that works. The
    first turn comes after `TURN_S`, so that it delays no start; a turn in progress is finished at
    the end."""
    stop = threading.Event()
    thread = threading.Thread(target=_turns, args=(stop, lead), name="upkeep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _turns(stop: threading.Event, lead: DatabaseLock) -> None:
    daily_at = -math.inf
    while not stop.wait(TURN_S):
        if not lead.was_held:
            continue
        try:
            fetch_logs()
            measure_ended()
            purge_expired()
            if time.monotonic() - daily_at > DAY_MS / 1000:
                daily_at = time.monotonic()
                daily()
        except (SQLAlchemyError, SlimscopeError, sqlite3.Error, OSError) as error:
            log.warning(error)


def fetch_logs() -> None:
    """Copy the logs of runs at work from the store of artifacts, if there is one."""
    if store() is not None:
        for job in queries.jobs(LIVE):
            fetch_log(job.run, job.attempts_made)


def measure_ended() -> None:
    """Write the disk space of runs that have ended since, and tell the webhook, each once."""
    for job in queries.unmeasured_runs(BATCH):
        fetch_ended(job.run)
        use = disk_use(job.run)
        if job.state == State.SUCCEEDED:
            remove_stored(work_folder(job.run))
            use.pop(CHECKPOINTS, None)  # the supervisor is deleting them
        size = sum(use.values())
        ended = update(Job).where(
            Job.id == job.id, Job.state.in_([*TERMINAL]), Job.disk_bytes.is_(None)
        )
        with writing() as session:
            if not change(session, ended.values(disk_bytes=size)):
                continue
            parts = ", ".join(f"{part} {readable_bytes(n)}" for part, n in use.items())
            note(session, job.id, "measured", SUPERVISOR_ACTOR, f"on disk: {parts or 'nothing'}")
        if settings().webhook and now_ms() - (job.finished_at or 0) < NEWS_MS:
            # tell the webhook of a run's end, once: nobody waits for one that does not answer.
            # `text` is what Slack, Mattermost and their like show, so that names must hold none of
            # their commands
            said = f"{job.run}{f' ({job.name})' if job.name else ''}: {job.state}"
            message = {
                "text": html.escape(said, quote=False),
                "run": job.run,
                "kind": job.kind,
                "name": job.name,
                "state": job.state,
                "error": job.error,
            }
            try:
                url = settings().webhook.get_secret_value()
                httpx.post(url, json=message, timeout=5.0).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                log.warning("The webhook was not told of %s: %s", job.run, type(error).__name__)


def daily() -> None:
    """Check the database once a day; copy it if it is intact; delete expired checkpoints."""
    last = last_check()
    if last is None or not 0 <= now_ms() - last.at < DAY_MS:
        last = check_integrity()
    if last is not None and not last.problems:
        copy_daily()  # else the copies of an intact database would be replaced one by one
    free_expired()
