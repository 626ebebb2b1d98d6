"""Buffered database writes of a run's metrics, statistics and results.

One thread writes them, so that the job never waits for an unavailable database. A checkpoint is
only committed when its rows are durable: in the database, or in a file next to the checkpoint
(`RowSpool`), from which this attempt or the next one writes them later.
"""

import json
import os
import threading
import time
import zlib
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from backend.metric_key import MetricKey
from backend.settings import settings
from backend.statistics.tensors import TensorProfile, TensorSnapshot
from backend.store.dialects import dialect_of
from backend.store.tables import TABLES_OF_A_RUN, ProfileRow, Result, Table, TensorRow

Values = dict[str, Any]
Row = tuple[type[Table], Values]
ZLIB_LEVEL = 4  # 4 % larger output than the default, in less than half the time
BASE64_KEY = "$base64"
T = TypeVar("T")
WRITE_INTERVAL_S = 1.0
MAX_ROWS = 20_000  # per transaction
RESPONSE_TIMEOUT_S = 10.0  # a database that is silent for longer counts as away

WriteRows = Callable[[list[Row], bool], None]  # (rows, whether they must survive a power cut)


def tensor_row(job_id: int, snapshot: TensorSnapshot) -> Row:
    return TensorRow, {
        "job_id": job_id,
        "tensor": snapshot.tensor,
        "stage": snapshot.stage,
        "step": snapshot.step,
        "block": snapshot.block,
        "module": snapshot.module,
        "n": snapshot.n,
        "zeros": snapshot.zeros,
        "below": snapshot.below,
        "above": snapshot.above,
        "lo": snapshot.lo,
        "hi": snapshot.hi,
        "counts": zlib.compress(snapshot.counts.astype(np.dtype("<u4")).tobytes(), ZLIB_LEVEL),
        "stats": snapshot.stats,
        "quantiles": list(snapshot.quantiles),
    }


def profile_row(job_id: int, profile: TensorProfile) -> Row:
    return ProfileRow, {
        "job_id": job_id,
        "tensor": profile.tensor,
        "stage": profile.stage,
        "step": profile.step,
        "name": profile.name,
        "block": profile.block,
        "module": profile.module,
        "shape": list(profile.values.shape),
        "values": zlib.compress(profile.values.astype(np.dtype("<f4")).tobytes(), ZLIB_LEVEL),
    }


def upsert(connection: Connection, rows: Iterable[Row]) -> None:
    """Insert rows or replace those with the same key, which a resumed attempt writes again. Runs
    one statement per table."""
    by_table: dict[type[Table], list[Values]] = defaultdict(list)
    for table, values in rows:
        by_table[table].append(values)
    for table, batch in by_table.items():
        sql_table = Table.metadata.tables[table.__tablename__]
        dialect_of(connection).upsert(connection, sql_table, batch)


class RowSpool:
    """A file of rows that wait for the database, one JSON line per row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: int | None = None  # offset after the last complete line

    def append(self, rows: Sequence[Row]) -> None:
        """Append rows and flush them to disk."""
        if not rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._end is None:
            self._end = sum(map(len, self._lines()))
        lines = (json.dumps([t.__tablename__, v], default=_encoded) + "\n" for t, v in rows)
        added = "".join(lines).encode()
        with self._path.open("ab") as file:
            file.truncate(self._end)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(added)

    def _lines(self) -> list[bytes]:
        """Return the complete lines."""
        if not self._path.exists():
            return []
        return [
            line for line in self._path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]

    def read(self) -> list[Row]:
        """Return the rows in the order they were written; none without a file."""
        records = (json.loads(line, object_hook=_decoded) for line in self._lines())
        return [(TABLES_OF_A_RUN[name], values) for name, values in records]

    def clear(self) -> None:
        """Delete the file once the database has its rows."""
        self._path.unlink(missing_ok=True)
        self._end = 0


def _encoded(value: bytes) -> dict[str, str]:
    """Encode bytes for JSON; raise `TypeError` for other values."""
    return {BASE64_KEY: b64encode(value).decode()}


def _decoded(value: dict[str, Any]) -> Any:
    return b64decode(value[BASE64_KEY]) if value.keys() == {BASE64_KEY} else value


class LeaseLostError(Exception):
    """Another attempt has taken over the job."""


class RowBuffer:
    """Queue of unwritten rows, in the order they were reported.

    `serve` runs in a writer thread. Threads that need durable rows (`settle`) request a flush and
    wait until the writer has finished it, for as long as the database answers.

    Args:
        write: writes rows in one transaction.
        spool: keeps rows on disk while the database is away.
        log: called when the database goes away and when it is back.
    """

    def __init__(self, write: WriteRows, spool: RowSpool, log: Callable[[str], None]) -> None:
        self._write, self._spool, self._log = write, spool, log
        self._rows: list[Row] = []
        self._spooled = 0  # number of leading rows that are also in the file
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._changed = threading.Condition()  # guards the attributes below
        # flush requests are numbered: requested by any thread, started and finished by the writer
        self._requested = self._started = self._finished = 0
        self._away_since: float | None = None
        self._answered_at = time.monotonic()
        self._failure: Exception | None = None
        self._has_writer = False
        self._lease_lost = False

    # rows ---------------------------------------------------------------------------------------

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows.append(row)

    def take_over(self, job_id: int) -> None:
        """Prepend the rows that an earlier attempt of the job left in the file."""
        leftover = [(table, values | {"job_id": job_id}) for table, values in self._spool.read()]
        with self._lock:
            self._rows, self._spooled = leftover + self._rows, len(leftover)

    def has_result(self, stage: str, metric: MetricKey) -> bool:
        """Return True if the result is in the queue."""
        key = (stage, metric.family, metric.series)
        with self._lock:
            results = [values for table, values in self._rows if table is Result]
        return any((v["stage"], v["family"], v["series"]) == key for v in results)

    def flush(self, durable: bool = False) -> None:
        """Write all rows, at most `MAX_ROWS` per transaction, as other writers wait for each
        commit. Raises OperationalError if the database is away."""
        with self._writing:  # one writer at a time, so that all rows are written on return
            for _ in range(max(1, -(-len(self._rows) // MAX_ROWS))):
                with self._lock:
                    rows = self._rows[:MAX_ROWS]
                try:
                    self._write(rows, durable)
                except OperationalError as error:
                    self._note_away(str(error.orig))
                    raise
                self._forget(len(rows))
        self._note_back()

    def _forget(self, count: int) -> None:
        """Drop the first `count` rows, which have been written."""
        with self._lock:
            del self._rows[:count]
            if self._spooled and self._spooled <= count:
                self._spool.clear()
            self._spooled = max(0, self._spooled - count)

    # unavailable database -------------------------------------------------------------------------

    def retry(self, act: Callable[[], T]) -> T:
        """Call `act` until the database answers. Raises OperationalError once it has been away for
        longer than `settings().offline_s`."""
        while True:
            try:
                result = act()
            except OperationalError as error:
                self._note_away(str(error.orig))
                if self.is_away_too_long():
                    raise
                time.sleep(WRITE_INTERVAL_S)
            else:
                self._note_back()
                return result

    def is_away_too_long(self) -> bool:
        """Return True if the database has been away for longer than `settings().offline_s`."""
        since = self._away_since
        return since is not None and time.monotonic() - since >= settings().offline_s

    def silence_s(self) -> float:
        """Return the seconds since the last successful write."""
        return time.monotonic() - self._answered_at

    def _note_away(self, why: str) -> None:
        with self._changed:
            is_new, now = self._away_since is None, time.monotonic()
            self._away_since = now if is_new else self._away_since
            self._changed.notify_all()
        if is_new:
            self._log(f"The database is unavailable. Metrics are kept and written later: {why}")

    def _note_back(self) -> None:
        with self._changed:
            was_away, self._away_since = self._away_since is not None, None
            self._answered_at = time.monotonic()
        if was_away:
            self._log("The database is available again.")

    # durability -----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Return when all rows are durable, in the database or in the file. Raises LeaseLostError
        if another attempt has taken over the job."""
        if not self._flush_durably():
            with self._lock:
                self._spool.append(self._rows[self._spooled :])
                self._spooled = len(self._rows)

    def _flush_durably(self) -> bool:
        """Return True if the database has all rows. Does not wait while it is away."""
        if self._lease_lost:
            raise LeaseLostError
        if self._away_since is not None:
            return False
        if self._has_writer:
            with self._changed:
                self._failure, request = None, self.request_flush()
                is_answered = self._changed.wait_for(
                    lambda: (
                        self._finished >= request
                        or self._away_since is not None
                        or self._failure is not None
                        or not self._has_writer
                    ),
                    RESPONSE_TIMEOUT_S,
                )
                if self._failure is not None:
                    raise self._failure
                if self._lease_lost:
                    raise LeaseLostError
                is_done = self._finished >= request
            if not is_answered:
                self._note_away(f"no answer for {RESPONSE_TIMEOUT_S:g} s")
            return is_done
        try:
            self.flush(durable=True)
        except OperationalError:
            return False
        return True

    def request_flush(self) -> int:
        """Ask the writer to flush at once; return the number of the request."""
        with self._changed:
            self._requested += 1
            self._changed.notify_all()
            return self._requested

    def serve(self, is_closed: Callable[[], bool], after_write: Callable[[], None]) -> None:
        """Write queued rows once a second, and at once on request, until `is_closed`.

        `wake` makes it check `is_closed` at once. Calls `after_write` after each write. Raises
        LeaseLostError if another attempt has taken over the job.
        """
        self._has_writer = True
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._requested > self._started or is_closed(), WRITE_INTERVAL_S
                    )
                if is_closed():
                    return
                self._write_once()
                after_write()
        except LeaseLostError:
            self._lease_lost = True
            raise
        finally:
            with self._changed:
                self._has_writer = False
                self._changed.notify_all()

    def wake(self) -> None:
        """Make the writer check whether it is closed."""
        with self._changed:
            self._changed.notify_all()

    def _write_once(self) -> None:
        with self._changed:
            is_awaited, request = self._requested > self._started, self._requested
            self._started = request
        failure: Exception | None = None
        try:
            self.flush(durable=is_awaited)
        except OperationalError:
            return
        except LeaseLostError:
            raise
        except Exception as error:  # reraised in the waiting thread
            failure = error
            self._log(f"Metrics could not be written. They are kept and written later: {error}")
        with self._changed:
            self._finished = self._finished if failure else request
            self._failure = failure
            self._changed.notify_all()
