"""Maintenance tasks of the supervisor, in a thread.

They measure the disk space of ended runs, notify the host's webhook, and purge runs that were
deleted a day ago. Once a day they check and copy the database, and delete expired checkpoints."""

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
PAUSE_S = 5.0  # between two iterations
BATCH_RUNS = 100  # runs that one iteration measures
WEBHOOK_MAX_AGE_MS = 3_600_000  # runs that ended earlier, such as imported ones, are not reported


@contextmanager
def upkeep(lead: DatabaseLock) -> Iterator[None]:
    """Context with the maintenance thread, which pauses while the supervisor of another machine is
    active.

    The first iteration comes after `PAUSE_S`, so that it does not delay a start. The end of the
    context waits for the current iteration."""
    stop = threading.Event()
    thread = threading.Thread(target=_run, args=(stop, lead), name="upkeep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _run(stop: threading.Event, lead: DatabaseLock) -> None:
    daily_at = -math.inf
    while not stop.wait(PAUSE_S):
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
    """Copy the logs of live runs from the artifact store, if there is one."""
    if store() is not None:
        for job in queries.jobs(LIVE):
            fetch_log(job.run, job.attempts_made)


def measure_ended() -> None:
    """Record the disk space of newly ended runs, and notify the webhook once per run."""
    for job in queries.unmeasured_runs(BATCH_RUNS):
        fetch_ended(job.run)
        use = disk_use(job.run)
        if job.state == State.SUCCEEDED:
            remove_stored(work_folder(job.run))
            use.pop(CHECKPOINTS, None)  # the supervisor is deleting them
        unmeasured = update(Job).where(
            Job.id == job.id, Job.state.in_([*TERMINAL]), Job.disk_bytes.is_(None)
        )
        with writing() as session:
            if not change(session, unmeasured.values(disk_bytes=sum(use.values()))):
                continue
            parts = ", ".join(f"{part} {readable_bytes(n)}" for part, n in use.items())
            note(session, job.id, "measured", SUPERVISOR_ACTOR, f"on disk: {parts or 'nothing'}")
        if settings().webhook and now_ms() - (job.finished_at or 0) < WEBHOOK_MAX_AGE_MS:
            _notify_webhook(job)


def _notify_webhook(job: Job) -> None:
    """Report the end of a run to the webhook, without retries.

    Slack, Mattermost and others display `text`. It is escaped, so that names cannot contain their
    commands."""
    text = f"{job.run}{f' ({job.name})' if job.name else ''}: {job.state}"
    message = {
        "text": html.escape(text, quote=False),
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
        log.warning("The webhook was not notified of %s: %s", job.run, type(error).__name__)


def daily() -> None:
    """Check the database, copy it if it is intact, and delete expired checkpoints."""
    last = last_check()
    if last is None or not 0 <= now_ms() - last.at < DAY_MS:
        last = check_integrity()
    if last is not None and not last.problems:
        copy_daily()  # copies of a damaged database would replace the intact copies
    free_expired()
