"""Serving process: `python -m jobs.serving.main`. One per data folder. It exits after ten times
`idle_exit` without a request, or when the dashboard that started it has ended. It may be killed at
any moment: streams end with an error, and the next request starts another process."""

import importlib
import os

from backend.logs import start_logging
from backend.queue.launcher import SERVING
from backend.store.migrate import current_revision, newest_revision


def main() -> None:
    """Serve, unless another process does. The lock is taken before torch is imported, which is
    slow."""
    parent = os.getppid()
    start_logging()
    if current_revision() != newest_revision():
        print(
            "The database belongs to another version of Slimscope. Restart the dashboard.",
            flush=True,
        )
    elif (lock := SERVING.hold()) is not None:
        importlib.import_module("jobs.serving.server").serve(parent)
        lock.release()


if __name__ == "__main__":
    main()
