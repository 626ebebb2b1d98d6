"""The figures of a run on their way into the database. One thread writes them, so that the work
never waits for a database that is away. Finished work waits until they are on a disk: there, or in
a file beside its checkpoint (`FigureSpool`), from which this attempt or the next one writes them
later."""

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
LEVEL = 4  # of zlib: 4 % larger than by default, in less than half the time
BYTES = "$base64"
T = TypeVar("T")
BEAT_S = 1.0
BATCH = 20_000  # rows in one transaction
TURN_S = 10.0  # after which a database that does not answer is taken to be away

Write = Callable[[list[Row], bool], None]  # rows, whether to survive a power cut


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
        "counts": zlib.compress(snapshot.counts.astype(np.dtype("<u4")).tobytes(), LEVEL),
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
        "values": zlib.compress(profile.values.astype(np.dtype("<f4")).tobytes(), LEVEL),
    }


def upsert(connection: Connection, rows: Iterable[Row]) -> None:
    """Insert rows, or replace those with the same key: a resumed attempt repeats itself. One
    statement per table, which is given all of its rows at once."""
    by_table: dict[type[Table], list[Values]] = defaultdict(list)
    for table, values in rows:
        by_table[table].append(values)
    for table, batch in by_table.items():
        stored = Table.metadata.tables[table.__tablename__]
        dialect_of(connection).upsert(connection, stored, batch)


class FigureSpool:
    """The file of one run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end: int | None = None  # of its last complete line, once that is known

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows behind those that are there. They are on the disk when this returns."""
        if not rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._end is None:
            self._end = sum(map(len, self._lines()))
        lines = (json.dumps([t.__tablename__, v], default=_packed) + "\n" for t, v in rows)
        added = "".join(lines).encode()
        with self._path.open("ab") as file:
            file.truncate(self._end)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(added)

    def _lines(self) -> list[bytes]:
        """The lines that are complete."""
        if not self._path.exists():
            return []
        return [
            line for line in self._path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]

    def read(self) -> list[Row]:
        """The rows in the order they were written; none without a file."""
        stored = (json.loads(line, object_hook=_unpacked) for line in self._lines())
        return [(TABLES_OF_A_RUN[name], values) for name, values in stored]

    def clear(self) -> None:
        """Delete the file: the database has its rows."""
        self._path.unlink(missing_ok=True)
        self._end = 0


def _packed(value: object) -> object:
    """What JSON has no word for."""
    if isinstance(value, bytes):
        return {BYTES: b64encode(value).decode()}
    raise TypeError(value)


def _unpacked(found: dict[str, Any]) -> Any:
    return b64decode(found[BYTES]) if found.keys() == {BYTES} else found


class LeaseLostError(Exception):
    """Another attempt holds the job now."""


class FigureBuffer:
    """Rows that are still to be written, in the order they were reported.

    Args:
        write: writes some in one transaction.
        spool: where they are kept while the database is away.
        log: told when the database goes away, and when it is back.
    """

    def __init__(self, write: Write, spool: FigureSpool, log: Callable[[str], None]) -> None:
        self._write, self._spool, self._log = write, spool, log
        self._rows: list[Row] = []
        self._spooled = 0  # of the first rows, which are in the file
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._turn = threading.Condition()  # in which all that follows is changed
        # how often somebody has waited for all rows, and which of them were looked at, and served
        self._asked = self._taken = self._served = 0
        self._away_since: float | None = None
        self._answered_at = time.monotonic()
        self._failure: Exception | None = None
        self._is_served = self._is_lost = False  # by a thread; to another attempt

    # rows ---------------------------------------------------------------------------------------

    def add(self, row: Row) -> None:
        with self._lock:
            self._rows.append(row)

    def take_over(self, job_id: int) -> None:
        """Begin with what an earlier attempt of the job has left in the file."""
        left = [(table, values | {"job_id": job_id}) for table, values in self._spool.read()]
        with self._lock:
            self._rows, self._spooled = left + self._rows, len(left)

    def has_result(self, stage: str, metric: MetricKey) -> bool:
        """Whether that result is still to be written."""
        key = (stage, metric.family, metric.series)
        with self._lock:
            results = [values for table, values in self._rows if table is Result]
        return any((v["stage"], v["family"], v["series"]) == key for v in results)

    def flush(self, durable: bool = False) -> None:
        """Write all rows, at most `BATCH` at once: others wait for each commit. Raises
        OperationalError: the database is away."""
        with self._writing:  # one writer at a time, so that a flush that returns is complete
            for _ in range(max(1, -(-len(self._rows) // BATCH))):
                with self._lock:
                    rows = self._rows[:BATCH]
                try:
                    self._write(rows, durable)
                except OperationalError as error:
                    self._note_away(str(error.orig))
                    raise
                self._forget(len(rows))
        self._note_back()

    def _forget(self, count: int) -> None:
        """Drop the first rows: the database has them."""
        with self._lock:
            del self._rows[:count]
            if self._spooled and self._spooled <= count:
                self._spool.clear()
            self._spooled = max(0, self._spooled - count)

    # a database that is away ----------------------------------------------------------------------

    def patiently(self, act: Callable[[], T]) -> T:
        """Call until the database answers. Raises OperationalError: it is away for longer than a
        run may go on without it."""
        while True:
            try:
                result = act()
            except OperationalError as error:
                self._note_away(str(error.orig))
                if self.is_away_too_long():
                    raise
                time.sleep(BEAT_S)
            else:
                self._note_back()
                return result

    def is_away_too_long(self) -> bool:
        """Whether the database is away for longer than a run may go on without it."""
        since = self._away_since
        return since is not None and time.monotonic() - since >= settings().offline_s

    def silence_s(self) -> float:
        """Seconds since the database has taken a beat: it was away before anybody noticed."""
        return time.monotonic() - self._answered_at

    def _note_away(self, why: str) -> None:
        with self._turn:
            is_new, now = self._away_since is None, time.monotonic()
            self._away_since = now if is_new else self._away_since
            self._turn.notify_all()
        if is_new:
            self._log(f"Figures could not be written and are kept for later: {why}")

    def _note_back(self) -> None:
        with self._turn:
            was_away, self._away_since = self._away_since is not None, None
            self._answered_at = time.monotonic()
        if was_away:
            self._log("The database takes figures again.")

    # finished work --------------------------------------------------------------------------------

    def settle(self) -> None:
        """Return when all rows are on a disk. Raises LeaseLostError: another attempt holds the job
        now, and what is here counts no more."""
        if not self._is_settled():
            with self._lock:
                self._spool.append(self._rows[self._spooled :])
                self._spooled = len(self._rows)

    def _is_settled(self) -> bool:
        """Whether the database has taken all rows. It is not waited for while it is away."""
        if self._is_lost:
            raise LeaseLostError
        if self._away_since is not None:
            return False
        if self._is_served:
            # whether the thread that serves has written all rows
            with self._turn:
                self._failure, mine = None, self.ask()
                answered = self._turn.wait_for(
                    lambda: (
                        self._served >= mine
                        or self._away_since is not None
                        or self._failure is not None
                        or not self._is_served
                    ),
                    TURN_S,
                )
                if self._failure is not None:
                    raise self._failure
                if self._is_lost:
                    raise LeaseLostError
                done = self._served >= mine
            if not answered:
                self._note_away(f"the database has not answered for {TURN_S:g} s")
            return done
        try:
            self.flush(durable=True)
        except OperationalError:
            return False
        return True

    def ask(self) -> int:
        """Let the thread that serves write at once; returns what `_served` is then, or more."""
        with self._turn:
            self._asked += 1
            self._turn.notify_all()
            return self._asked

    def serve(self, is_closed: Callable[[], bool], look: Callable[[], None]) -> None:
        """Write what is there once a second, and at once where somebody waits for it, until it is
        closed (`wake` lets that be asked at once); call `look` after each time. Raises
        LeaseLostError: another attempt holds the job now."""
        self._is_served = True
        try:
            while True:
                with self._turn:
                    self._turn.wait_for(lambda: self._asked > self._taken or is_closed(), BEAT_S)
                if is_closed():
                    return
                self._serve_once()
                look()
        except LeaseLostError:
            self._is_lost = True
            raise
        finally:
            with self._turn:
                self._is_served = False
                self._turn.notify_all()

    def wake(self) -> None:
        """Let the thread that serves look whether it is to return."""
        with self._turn:
            self._turn.notify_all()

    def _serve_once(self) -> None:
        with self._turn:
            waits, taken = self._asked > self._taken, self._asked
            self._taken = taken
        failure: Exception | None = None
        try:
            self.flush(durable=waits)
        except OperationalError:
            return
        except LeaseLostError:
            raise
        except Exception as error:  # as if who waits had written themselves
            failure = error
            self._log(f"Figures could not be written and are kept for later: {error}")
        with self._turn:
            self._served = self._served if failure else taken
            self._failure = failure
            self._turn.notify_all()
