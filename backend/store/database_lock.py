"""A lock on a database that one process holds, whatever machine it is on."""

import time
from contextlib import suppress

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError

from backend.store.dialects.base import NamedLock
from backend.store.dialects.choice import dialect_of

ASK_S = 1.0  # between two tries to get it


class DatabaseLock:
    """A lock that is held by a connection of its own: whatever ends the process or cuts it off
    releases it. SQLite needs none: a lock in the folder of its file keeps others away."""

    def __init__(self, engine: Engine, lock: NamedLock) -> None:
        self._engine, self._lock = engine, lock
        self._connection: Connection | None = None
        self._asked_at = float("-inf")

    @property
    def was_held(self) -> bool:
        """Whether this process held the lock when `is_held` last looked."""
        return self._connection is not None or dialect_of(self._engine).one_machine

    def is_held(self) -> bool:
        """Whether this process holds the lock now; it tries to get it if it does not.
        `OperationalError` while the database is away."""
        if dialect_of(self._engine).one_machine:
            return True
        if self._connection is not None:
            try:
                self._connection.execute(select(1))
            except SQLAlchemyError:
                self.release()
            return self._connection is not None
        if time.monotonic() - self._asked_at >= ASK_S:
            self._asked_at = time.monotonic()
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if dialect_of(connection).try_lock(connection, self._lock):
                self._connection = connection
            else:
                connection.close()
        return self._connection is not None

    def release(self) -> None:
        """Let another process have it. The connection is not used again: it would keep the lock."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
            self._connection = None
