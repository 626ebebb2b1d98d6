"""The playground's process: `python -m jobs.playground.main`, one per data folder.

It is started when somebody asks for an answer, keeps models in memory, and ends when nobody has
asked for `playground_idle` seconds. An answer is a run like any other: its row is the truth about
it, and what this process does to it counts only while its attempt is the run's newest. When the
process is killed, the supervisor finds the attempts of a dead process and queues their runs again.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import suppress

from sqlalchemy.exc import OperationalError

from backend.queue.launcher import PLAYGROUND
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import current_revision, newest_revision
from backend.store.states import Lane
from jobs.playground.server import PlaygroundServer


def main() -> None:
    """Give answers until nobody wants any."""
    if current_revision() != newest_revision():
        print("The database is of another version of Slimscope; restart the dashboard.", flush=True)
        return
    while (lock := PLAYGROUND.hold()) is not None:
        idle = serve(PlaygroundServer())
        lock.release()
        if not idle or not queries.waits_for(Lane.PLAYGROUND, limit=1):
            return  # else one was added as the lock was released


def serve(server: PlaygroundServer) -> bool:
    """Run the loop until it is idle, asked to end, or its data folder is gone.

    Returns:
        Whether it was idle.
    """
    asked = False

    def end(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, end)
    began = time.monotonic()
    while not asked and settings().root.is_dir():
        idle = min(server.idle_s, time.monotonic() - began)
        if idle > settings().playground_idle:
            return True
        try:
            server.turn()
        except (OperationalError, sqlite3.Error, OSError) as error:
            with suppress(OSError):
                print(f"{time.strftime('%F %T')} {error}", flush=True)
            time.sleep(1)
    server.close()
    return False


if __name__ == "__main__":
    main()
