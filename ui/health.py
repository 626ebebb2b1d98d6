"""Whether the dashboard works: for its own pages, for what watches it (`/healthz`), and for
Prometheus (`/metrics`). One thread reads the state of the database for all who ask, so that nobody
waits long for one that does not answer."""

import asyncio
import logging
import math
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from backend.queue import scheduling
from backend.queue.lifecycle import CONCERNS_ALL_ROWS
from backend.queue.scheduling import QueueStatus
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import other_version
from backend.store.session import now_ms, one_view
from backend.store.states import State
from jobs.serving.client import serving_status
from ui.format import moment
from ui.security.auth import current_user
from ui.security.connections import GuardedProtocol
from ui.security.middleware import TIMES

log = logging.getLogger("slimscope.database")
PATIENCE_S, KNOWN_AWAY_S = 5.0, 0.5  # the latter where it did not answer when last asked


class Snapshot(NamedTuple):
    """What pages show of the database, and the seconds it took to read that."""

    status: QueueStatus
    cursor: str
    seconds: float
    outdated: str  # what to say where this process is of another version; else ""


class StatusReader:
    """The newest `Snapshot`, at most a second old where the database answers."""

    def __init__(self) -> None:
        self._thread, self._lock = ThreadPoolExecutor(1, "status"), threading.Lock()
        self._asked: Future[Snapshot] | None = None
        self._asked_at, self._url = -math.inf, ""
        self._is_away, self._answered_at = False, now_ms()
        self._last: Snapshot | None = None

    def read(self) -> tuple[Snapshot | None, str]:
        """What was read last, and what to say without an answer, or of another version."""
        with self._lock:
            now, url, asked = time.monotonic(), settings().url, self._asked
            is_old = asked is not None and asked.done() and now - self._asked_at >= 1.0
            if asked is None or is_old or url != self._url:
                self._asked = asked = self._thread.submit(_look)
                self._asked_at, self._url = now, url
        try:
            self._last = asked.result(KNOWN_AWAY_S if self._is_away else PATIENCE_S)
        except CONCERNS_ALL_ROWS as error:
            away = f"The database does not answer since {moment(self._answered_at)}; runs go on."
            if not self._is_away:
                log.error(away, exc_info=error)
            self._is_away = True
            return self._last, away
        self._is_away, self._answered_at = False, now_ms()
        return self._last, self._last.outdated


def _look() -> Snapshot:
    began = time.monotonic()
    with one_view():
        status, cursor = scheduling.status(), "|".join(map(str, queries.cursor()))
    return Snapshot(status, cursor, time.monotonic() - began, other_version())


READER = StatusReader()


def healthz(_: Request) -> Response:
    """200 where the queue works; else 503 and a sentence."""
    found, problem = READER.read()
    if found and not problem and found.status.stalled:
        problem = "Runs wait, and the supervisor is not running."
    return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)


def metrics(request: Request) -> Response:
    """Figures in Prometheus's text format. Guests get what pages show them, a host the state of the
    machine, too: Prometheus sends the token as `Authorization: Bearer`."""
    found, away = READER.read()
    is_up = found is not None and away in ("", found.outdated)
    gauges: dict[str, float] = {"database_up": is_up}
    if found and is_up:
        status = found.status
        gauges |= {
            "database_seconds": found.seconds,  # to read the state of the queue
            "runs_queued": len(status.queued),
            "runs_live": len(status.live),
            "runs_ended": status.finished,
            "runs_failed_or_lost": status.needs_attention,
            **{f'runs{{state="{state}"}}': status.states.get(state, 0) for state in State},
            "supervisor_up": status.supervisor_alive,
            "engine_up": status.silent_since is None,
        }
    if current_user(request).role == "host":
        gauges["connections"] = len(GuardedProtocol.limits)
        gauges["disk_free_bytes"] = shutil.disk_usage(settings().root).free
        gauges["answers"] = asyncio.run(serving_status()).get("requests", 0)  # being written
        gauges["requests_total"] = TIMES.number
        gauges["request_seconds_total"] = TIMES.seconds  # until their answers began
    lines = list[str]()
    for family, members in groupby(gauges.items(), key=lambda each: each[0].partition("{")[0]):
        kind = "counter" if family.endswith("_total") else "gauge"
        lines.append(f"# TYPE slimscope_{family} {kind}\n")
        lines += [f"slimscope_{name} {float(value):.12g}\n" for name, value in members]
    return Response("".join(lines), headers={"content-type": "text/plain; version=0.0.4"})
