"""The playground's process: `python -m jobs.playground.main`, one per data folder, until nobody has
asked for ten times `idle_exit`. An answer is a run like any other: when the process is killed, the
supervisor finds the attempts of a dead process and queues their runs again."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from backend.queue import scheduling
from backend.queue.launcher import PLAYGROUND
from backend.store.migrate import current_revision, newest_revision
from backend.store.states import Lane

SERVER = "jobs.playground.server"  # imports torch, which takes seconds


def main() -> None:
    """Give answers until nobody wants any. The lock is taken before torch, which is slow, is
    imported."""
    if current_revision() != newest_revision():
        print("The database is of another version of Slimscope; restart the dashboard.", flush=True)
        return
    while (lock := PLAYGROUND.hold()) is not None:
        serve: Callable[[], bool] = importlib.import_module(SERVER).serve
        idle = serve()
        lock.release()
        if not idle or not scheduling.waits_for(Lane.PLAYGROUND, limit=1):
            return  # else one was added as the lock was released


if __name__ == "__main__":
    main()
