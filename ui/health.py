"""Health of the dashboard: for its pages, for health checks (`/healthz`) and for Prometheus
(`/metrics`). A single thread reads the database state for all requests, so that no request waits
long for an unresponsive database."""

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
from backend.store.session import now_ms, single_snapshot
from backend.store.states import State
from jobs.serving.client import serving_status
from ui.format import moment
from ui.security.auth import current_user
from ui.security.connections import GuardedProtocol
from ui.security.middleware import TIMES

log = logging.getLogger("slimscope.database")
TIMEOUT_S = 5.0
TIMEOUT_WHILE_AWAY_S = 0.5  # after the database failed to answer


class Snapshot(NamedTuple):
    """Queue status shown on the pages, and the seconds it took to read."""

    status: QueueStatus
    cursor: str
    seconds: float
    outdated: str  # message if the database has another version than this process, else ""


class StatusReader:
    """Keeps the newest `Snapshot`, at most a second old while the database answers."""

    def __init__(self) -> None:
        self._thread, self._lock = ThreadPoolExecutor(1, "status"), threading.Lock()
        self._pending: Future[Snapshot] | None = None
        self._requested_at_s, self._url = -math.inf, ""
        self._is_away, self._answered_at = False, now_ms()
        self._last: Snapshot | None = None

    def read(self) -> tuple[Snapshot | None, str]:
        """Return the last snapshot, and a message if the database is away or has another
        version."""
        with self._lock:
            now, url, pending = time.monotonic(), settings().url, self._pending
            is_old = pending is not None and pending.done() and now - self._requested_at_s >= 1.0
            if pending is None or is_old or url != self._url:
                self._pending = pending = self._thread.submit(_read_snapshot)
                self._requested_at_s, self._url = now, url
        try:
            self._last = pending.result(TIMEOUT_WHILE_AWAY_S if self._is_away else TIMEOUT_S)
        except CONCERNS_ALL_ROWS as error:
            away = (
                f"The database has not answered since {moment(self._answered_at)}. Runs continue."
            )
            if not self._is_away:
                log.error(away, exc_info=error)
            self._is_away = True
            return self._last, away
        self._is_away, self._answered_at = False, now_ms()
        return self._last, self._last.outdated


def _read_snapshot() -> Snapshot:
    began = time.monotonic()
    with single_snapshot():
        status, cursor = scheduling.status(), "|".join(map(str, queries.cursor()))
    return Snapshot(status, cursor, time.monotonic() - began, other_version())


READER = StatusReader()


def healthz(_: Request) -> Response:
    """Return 200 if the queue works, else 503 and the problem."""
    snapshot, problem = READER.read()
    if snapshot and not problem and snapshot.status.stalled:
        problem = "Runs are waiting, but the supervisor is not running."
    return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)


def metrics(request: Request) -> Response:
    """Return metrics in the Prometheus text format. Guests get the figures that pages show them;
    hosts also get the state of the machine (Prometheus sends the token as `Authorization:
    Bearer`)."""
    snapshot, problem = READER.read()
    is_up = snapshot is not None and problem in ("", snapshot.outdated)
    gauges: dict[str, float] = {"database_up": is_up}
    if snapshot and is_up:
        status = snapshot.status
        gauges |= {
            "database_seconds": snapshot.seconds,  # to read the state of the queue
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
        gauges["answers"] = asyncio.run(serving_status()).get("requests", 0)  # in progress
        gauges["requests_total"] = TIMES.number
        gauges["request_seconds_total"] = TIMES.seconds  # until the first byte of the response
    lines = list[str]()
    for family, members in groupby(gauges.items(), key=lambda gauge: gauge[0].partition("{")[0]):
        kind = "counter" if family.endswith("_total") else "gauge"
        lines.append(f"# TYPE slimscope_{family} {kind}\n")
        lines += [f"slimscope_{name} {float(value):.12g}\n" for name, value in members]
    return Response("".join(lines), headers={"content-type": "text/plain; version=0.0.4"})
