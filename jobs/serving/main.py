"""The process that answers: `python -m jobs.serving.main`, one per data folder, until nobody has
asked for ten times `idle_exit`, or the dashboard that started it has ended. It may be killed at any
moment: streams end with an error, and the next request starts another."""

import importlib
import os

from backend.logs import start_logging
from backend.queue.launcher import SERVING
from backend.store.migrate import current_revision, newest_revision


def main() -> None:
    """Serve, if no other process does. The lock is taken before torch, which is slow, is
    imported."""
    parent = os.getppid()
    start_logging()
    if current_revision() != newest_revision():
        print("The database is of another version of Slimscope; restart the dashboard.", flush=True)
    elif (lock := SERVING.hold()) is not None:
        importlib.import_module("jobs.serving.server").serve(parent)
        lock.release()


if __name__ == "__main__":
    main()
