"""Whether the dashboard works: for its own pages, for what watches it (`/healthz`), and for
Prometheus (`/metrics`). The state of the database is read once for all who ask, by one thread, so
that nobody waits long for a database that does not answer."""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from backend.queue import scheduling
from backend.queue.lifecycle import CONCERNS_ALL_ROWS
from backend.queue.scheduling import QueueStatus
from backend.settings import settings
from backend.store import queries
from backend.store.integrity import last_check
from backend.store.session import now_ms, one_view
from ui.format import moment
from ui.security.auth import current_user
from ui.security.connections import GuardedProtocol

log = logging.getLogger("slimscope.database")

FRESH_S = 1.0
PATIENCE_S = 5.0  # with a database that answered when it was last asked
KNOWN_AWAY_S = 0.5  # with one that did not
SENT = "text/plain; version=0.0.4; charset=utf-8"  # format of Prometheus


@dataclass(frozen=True)
class Snapshot:
    """What pages show of the database. `problem`: what the last check of it found, "" if nothing;
    `seconds`: that reading it took."""

    status: QueueStatus
    cursor: str
    problem: str
    seconds: float


class DatabaseAwayError(Exception):
    """The database does not answer."""


class StatusReader:
    """The newest `Snapshot`, at most a second old."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "status")
        self._lock = threading.Lock()
        self._asked: Future[Snapshot] | None = None
        self._asked_at, self._url, self._is_away = -math.inf, "", False
        self._answered_at = now_ms()
        self.cursor = ""  # as last read

    def read(self) -> Snapshot:
        """Raises `DatabaseAwayError` where the database does not answer in time."""
        with self._lock:
            now, url = time.monotonic(), settings().url
            old = self._asked is None or (self._asked.done() and now - self._asked_at >= FRESH_S)
            if old or url != self._url:
                self._asked, self._asked_at, self._url = self._thread.submit(_look), now, url
            asked = self._asked
        assert asked is not None
        try:
            found = asked.result(KNOWN_AWAY_S if self._is_away else PATIENCE_S)
        except CONCERNS_ALL_ROWS as error:
            if not self._is_away:
                log.error("The database does not answer.", exc_info=error)
            self._is_away = True
            since = moment(self._answered_at)
            raise DatabaseAwayError(f"The database does not answer since {since}") from error
        self._is_away, self._answered_at, self.cursor = False, now_ms(), found.cursor
        return found

    def forget(self) -> None:
        """Read anew."""
        self._asked = None


def _look() -> Snapshot:
    began, checked = time.monotonic(), last_check()
    problem = checked.problems[0] if checked and checked.problems else ""
    with one_view():
        status, cursor = scheduling.status(), "|".join(map(str, queries.cursor()))
    return Snapshot(status, cursor, problem, time.monotonic() - began)


READER = StatusReader()


def healthz(_: Request) -> Response:
    """200 where the queue works; else 503 and a sentence."""
    try:
        stalled = READER.read().status.stalled
    except DatabaseAwayError as error:
        return PlainTextResponse(f"{error}; runs go on.\n", 503)
    if stalled:
        return PlainTextResponse("Runs wait, and the supervisor is not running.\n", 503)
    return PlainTextResponse("ok\n")


def metrics(request: Request) -> Response:
    """What Prometheus draws. Guests get what the pages show them, a host the machine's state, too:
    Prometheus sends the token as `Authorization: Bearer`."""
    lines = _lines("database_up", "Whether the database answers.", 0)
    try:
        found = READER.read()
    except DatabaseAwayError:
        pass
    else:
        states = {f'{{state="{state}"}}': n for state, n in queries.count_by_state().items()}
        status = found.status
        lines = _lines("database_up", "Whether the database answers.", 1)
        lines += _lines(
            "database_seconds", "Time of reading the state of the queue.", found.seconds
        )
        lines += _lines("runs", "Runs by state.", states)
        lines += _lines("answers_waiting", "Answers the playground has not begun.", status.answers)
        lines += _lines("supervisor_up", "Whether a supervisor works.", status.supervisor_alive)
        cluster = status.silent_since is None
        lines += _lines("cluster_up", "Whether the engine answers.", cluster)
    if current_user(request).role == "host":
        process, free = psutil.Process(), shutil.disk_usage(settings().root).free
        lines += _lines("connections", "Open connections.", len(GuardedProtocol.limits))
        lines += _lines("disk_free_bytes", "Room on the disk of the data folder.", free)
        lines += _lines("memory_bytes", "Of the dashboard.", process.memory_info().rss)
        lines += _lines("open_files", "Of the dashboard.", process.num_fds())
    return Response("\n".join([*lines, ""]), headers={"content-type": SENT})


def _lines(name: str, about: str, values: float | Mapping[str, float]) -> list[str]:
    """A gauge in the text format: one value, or one for each set of labels."""
    samples: Mapping[str, Any] = values if isinstance(values, Mapping) else {"": values}
    name = f"slimscope_{name}"
    head = [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
    return [*head, *(f"{name}{labels} {float(value):.10g}" for labels, value in samples.items())]
